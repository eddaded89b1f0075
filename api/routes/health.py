"""Liveness and readiness."""

from http import HTTPStatus

from fastapi import APIRouter, Response

from api.deps import ServicesDep
from api.http.problems import unavailable_response
from api.schemas.health import HealthBody, ReadyBody
from replaceme_core.errors import Unavailable
from replaceme_core.runner.present_workers import sandboxes_of_workers

router = APIRouter(tags=["health"])


@router.get("/health")
async def health() -> HealthBody:
    """200 while the process runs. Does not check the database or the broker."""
    return HealthBody()  # async: it must respond while all threads wait for the database


@router.get("/ready", response_model=ReadyBody, responses={HTTPStatus.SERVICE_UNAVAILABLE: {}})
def ready(services: ServicesDep) -> Response | ReadyBody:
    """200 when the database and the broker respond, otherwise 503. Names the sandboxes of workers on this `DATA`."""
    down: list[Unavailable] = []
    for service in (services.database, services.queue):
        try:
            service.ping()
        except Unavailable as error:
            down.append(error)
    if not down:
        return ReadyBody(sandboxes=sandboxes_of_workers(services.settings.workspace))
    return unavailable_response(code=down[0].code, detail="; ".join(error.message for error in down))
