"""The service: whether it lives and is ready, its workers, the families of models that it knows, its metrics."""

import hmac
from http import HTTPStatus
from typing import Literal

from fastapi import APIRouter, HTTPException, Request, Response
from pydantic import Field

from api.http.guard import CHALLENGE
from api.http.problems import problem_of, problem_response
from api.http.responses import NO_STORE, UNCHANGED, listed
from api.routes.deps import CallerDep, ReadingSessionDep, ServicesDep
from replaceme_core.errors import Unavailable
from replaceme_core.families.layout import MapStructure
from replaceme_core.hardware import WorkerKind
from replaceme_core.ledger.keys import hash_of
from replaceme_core.ledger.migrate import check_migrated
from replaceme_core.ledger.records import Worker
from replaceme_core.ledger.watching import Workers
from replaceme_core.request import removal
from replaceme_core.request.method import Method
from replaceme_core.runner.sandbox import SandboxMode
from replaceme_core.shapes import Family, Page, Shape

router = APIRouter(tags=["health"])
workers = APIRouter(tags=["workers"])
families = APIRouter(tags=["families"])


# Bodies


class HealthBody(Shape):
    status: Literal["ok"] = "ok"
    """The process runs."""


class ReadyBody(Shape):
    status: Literal["ok"] = "ok"
    """Everything below answers."""
    database: Literal["ok"] = "ok"
    """It answers, and its tables are those of this release."""
    broker: Literal["ok"] = "ok"
    """It answers, and takes messages."""
    workers: dict[WorkerKind, int] = Field(description="live workers that serve each kind of job")
    sandboxes: tuple[SandboxMode, ...] = Field(description="the sandbox in force of each live worker")


class FamilyBody(Family):
    """A model type. `reason` explains why it is refused or, if it is supported, which of its models are not."""

    methods: tuple[Method, ...]
    structures: tuple[MapStructure, ...]


# Routes


@router.get("/health")
async def health() -> HealthBody:
    """200 while the process runs. Does not check the database or the broker."""
    return HealthBody()  # async: it must respond while all threads wait for the database


@router.get("/ready", response_model=ReadyBody, responses={HTTPStatus.SERVICE_UNAVAILABLE: {}})
def ready(services: ServicesDep) -> Response | ReadyBody:
    """200 when the database has all migrations of this release and the broker takes messages, otherwise 503.

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
    return problem_of(type(down[0])("; ".join(error.message for error in down)))


@workers.get("/workers", response_model=Page[Worker], responses=UNCHANGED)
def list_workers(session: ReadingSessionDep, caller: CallerDep, request: Request) -> Response:
    """The workers by name: those that are alive, and those that were lost within the last hour."""
    return listed(Page[Worker](items=Workers(session).list(owner=caller)), request=request)


@families.get("/families", response_model=Page[FamilyBody], responses=UNCHANGED)
def list_families(request: Request) -> Response:
    """The families that can be compressed, and those that are refused with the reason."""
    return listed(Page(items=tuple(map(FamilyBody.of, removal.families()))), request=request)


@router.get("/metrics", include_in_schema=False)  # it is there only where the operator has set a key
async def scrape(services: ServicesDep, request: Request) -> Response:
    """All metrics in Prometheus' text format, or as OpenMetrics."""
    key = services.settings.metrics_key
    if key is None:
        raise HTTPException(HTTPStatus.NOT_FOUND)
    kind, _, given = request.headers.get("authorization", "").partition(" ")
    # as hashes, so that the time says nothing of the key or its length
    is_it = hmac.compare_digest(hash_of(given.strip()), hash_of(key.get_secret_value()))
    if kind.lower() != "bearer" or not is_it:
        return problem_response(
            status=HTTPStatus.UNAUTHORIZED,
            detail="expected `Authorization: Bearer KEY` with the key in REPLACEME_METRICS_KEY, which is no API key",
            headers={"WWW-Authenticate": CHALLENGE},
        )
    body, media_type = await services.monitoring.scrape(accept=request.headers.get("accept", ""))
    return Response(body, headers={"Content-Type": media_type, "Cache-Control": NO_STORE})
