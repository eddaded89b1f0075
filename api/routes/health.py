"""Liveness and readiness."""

from http import HTTPStatus

from fastapi import APIRouter, Response

from api.deps import ServicesDep
from api.http.problems import unavailable_response
from api.schemas.health import HealthBody, ReadyBody
from replaceme_core.errors import Unavailable
from replaceme_core.hardware import WorkerKind
from replaceme_core.ledger.migrate import check_migrated
from replaceme_core.ledger.watching import Workers
from replaceme_core.runner.sandbox import SandboxMode

router = APIRouter(tags=["health"])


@router.get("/health")
async def health() -> HealthBody:
    """200 while the process runs. Does not check the database or the broker."""
    return HealthBody()  # async: it must respond while all threads wait for the database


@router.get("/ready", response_model=ReadyBody, responses={HTTPStatus.SERVICE_UNAVAILABLE: {}})
def ready(services: ServicesDep) -> Response | ReadyBody:
    """200 when the database has all migrations of this release and the broker responds, otherwise 503.

    Reports live workers by kind, and the sandbox of each.
    """
    down: list[Unavailable] = []
    workers: dict[WorkerKind, int] = {}
    sandboxes: tuple[SandboxMode, ...] = ()
    try:
        with services.database.session(read_only=True) as session:
            check_migrated(session)
            reported = Workers(session)
            workers, sandboxes = reported.count_alive(), reported.sandboxes_alive()
    except Unavailable as error:
        down.append(error)
    try:
        services.queue.ping()
    except Unavailable as error:
        down.append(error)
    if not down:
        return ReadyBody(workers=workers, sandboxes=sandboxes)
    return unavailable_response(code=down[0].code, detail="; ".join(error.message for error in down))
