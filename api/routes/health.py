"""Is the process alive, and can it do its work."""

from http import HTTPStatus

from fastapi import APIRouter, Response

from api.deps import ServicesDep
from api.http.problems import unavailable_response
from api.schemas.jobs import HealthBody, ReadyBody
from replaceme_core.errors import Unavailable

router = APIRouter(tags=["health"])


@router.get("/health")
async def health() -> HealthBody:
    """Says nothing about the database and the broker. Async, so that it answers while all threads wait for them."""
    return HealthBody()


@router.get("/ready", response_model=ReadyBody, responses={HTTPStatus.SERVICE_UNAVAILABLE: {}})
def ready(services: ServicesDep) -> Response | ReadyBody:
    """200 when the database and the broker answer, else 503."""
    down: list[Unavailable] = []
    for service in (services.database, services.queue):
        try:
            service.ping()
        except Unavailable as error:
            down.append(error)
    if not down:
        return ReadyBody()
    return unavailable_response(code=down[0].code, detail="; ".join(error.message for error in down))
