"""The application: routers, error handlers, what is closed at the end. No logic."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.concurrency import run_in_threadpool

from api.deps import Services
from api.http import openapi
from api.http import problems as errors
from api.http import request_log as logs
from api.http.bodies import BodyLimit
from api.http.deadline import Deadline
from api.http.latency import quick_turns
from api.routes import events, families, health, jobs
from replaceme_core.settings import Settings


def create_app(settings: Settings | None = None) -> FastAPI:
    """The service. Without `settings`, the environment is read on first use; nothing is connected to before."""
    services = Services(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(services.open)
        with quick_turns():
            yield
        await run_in_threadpool(services.close)

    logs.configure()
    app: FastAPI = FastAPIOffline(
        title="ReplaceMe",
        version=version("replaceme"),
        summary="Compresses language models by depth pruning with linear compensation.",
        lifespan=lifespan,
        redirect_slashes=False,
        responses=openapi.PROBLEMS,
    )
    app.state.services = services
    for router in (jobs.router, events.router, families.router, health.router):
        app.include_router(router)
    errors.install(app)
    app.add_middleware(BodyLimit)
    app.add_middleware(Deadline)
    app.add_middleware(logs.RequestLog)
    openapi.install(app)
    return app


app = create_app()
