"""The application: routers, error handlers, middleware, start and shutdown. No logic."""

import os
import pkgutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import cache
from importlib import import_module, metadata

from fastapi import APIRouter, Depends, FastAPI
from fastapi_offline import FastAPIOffline
from starlette.concurrency import run_in_threadpool
from starlette.middleware.gzip import GZipMiddleware
from starlette.staticfiles import StaticFiles

from api import routes
from api.dashboard import access, comparing, jobs, new_job, service
from api.dashboard.middleware import Pages, form
from api.dashboard.rendering import FILES, static_root
from api.http import hosts, openapi, problems
from api.http.deadline import Deadline, low_latency
from api.http.guard import Guard
from api.http.request_log import RequestLog
from api.http.requests import BodyLimit, refuse_unknown
from api.routes.deps import Services
from api.routes.reading import Unchanged
from replaceme_core import telemetry
from replaceme_core.settings import Settings

COMPRESSED_BYTES = 1000  # the smallest body that is sent with gzip


def create_app(settings: Settings | None = None) -> FastAPI:
    """The service, by default with the settings of the environment. Connects to nothing before its start."""
    settings = settings or Settings()

    @cache
    def services() -> Services:
        return Services(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        telemetry.configure_logs(settings.log_format, service="api")
        telemetry.configure_spans(os.environ, service="api")
        await run_in_threadpool(services)  # an invalid setting stops the process now, not a request later
        with low_latency():
            yield
        await services().feed.close()
        await run_in_threadpool(services().close)
        services.cache_clear()  # for another start
        await run_in_threadpool(telemetry.flush_spans)

    app: FastAPI = FastAPIOffline(
        title="ReplaceMe",
        version=metadata.version("replaceme"),
        summary="Compresses language models by depth pruning with linear compensation.",
        lifespan=lifespan,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,  # stays while paths may get more parameters
        docs_url=None,  # its scripts are served; the page is ours, with a policy
        redoc_url=None,
        dependencies=[Depends(refuse_unknown)],
    )
    app.state.services = services
    for router in _routers():
        app.include_router(router)
    for pages in (access, comparing, jobs, new_job, service):
        app.include_router(pages.router, include_in_schema=False, dependencies=[Depends(form)])
    app.mount(static_root(), StaticFiles(directory=FILES))
    problems.install(app)
    app.add_middleware(BodyLimit)
    app.add_middleware(Unchanged, reader=lambda: services().reader)
    app.add_middleware(Guard, callers=lambda: services().callers, limits=lambda: services().rate_limits)
    app.add_middleware(Deadline)
    app.add_middleware(Pages, sessions=lambda: services().sessions)
    app.add_middleware(GZipMiddleware, minimum_size=COMPRESSED_BYTES, compresslevel=6)  # and no stream of events
    hosts.install(app, settings)
    app.add_middleware(RequestLog, record=lambda **request: services().monitoring.record_request(**request))
    openapi.install(app)
    return app


def _routers() -> Iterator[APIRouter]:
    """All routers of the modules in `api/routes`, in the order of their names."""
    for found in sorted(pkgutil.iter_modules(routes.__path__), key=lambda module: module.name):
        module = import_module(f"{routes.__name__}.{found.name}")
        yield from (value for value in vars(module).values() if isinstance(value, APIRouter))


app = create_app()
