"""Events: of a job and of all your jobs, as lists and as streams."""

import re
from collections.abc import AsyncGenerator, AsyncIterator
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from api.bodies import EventBody, JobEventBody, Parameters
from api.http.responses import UNCHANGED, listed
from api.routes.deps import CallerDep, ServicesDep
from api.routes.event_feed import KEEP_ALIVE, RETRY, STREAM, EventMessage, last_event_id, stream
from replaceme_core.ledger import reading
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.states import TERMINAL
from replaceme_core.ledger.watching import events_after, number_all
from replaceme_core.shapes import Page

router = APIRouter(tags=["history"])
_LARGEST_SEQ = 2**31 - 1
_HIGHEST_POSITION = 2**63 - 1
_WEIGHT = re.compile(r"[01](\.[0-9]{0,3})?")


class EventsQuery(Parameters):
    after: Annotated[int, Field(ge=0, le=_LARGEST_SEQ)] = 0
    limit: Annotated[int, Field(ge=1, le=1000)] = 100


class AllEventsQuery(EventsQuery):
    after: Annotated[int, Field(ge=0, le=_HIGHEST_POSITION, description="a position")] = 0


_STREAMED: dict[int | str, dict[str, Any]] = {
    **UNCHANGED,
    HTTPStatus.OK.value: {
        "content": {
            STREAM: {
                "schema": {"type": "string", "description": "`id`, `event` (the type) and `data` (the event as JSON)"}
            }
        }
    },
}
_LAST_EVENT_ID = {
    "parameters": [
        {
            "name": "Last-Event-ID",
            "in": "header",
            "required": False,
            "schema": {"type": "string", "pattern": "^[0-9]{0,18}$"},
            "description": "Of a stream: the id of the last event that was received; those behind it follow.",
        }
    ]
}


@router.get(
    "/jobs/{job_id}/events",
    response_model=Page[EventBody],
    responses={**_STREAMED, HTTPStatus.NO_CONTENT.value: {"description": "Of a stream: there are no further events"}},
    openapi_extra=_LAST_EVENT_ID,
)
async def list_events(
    job_id: str,
    query: Annotated[EventsQuery, Query()],
    services: ServicesDep,
    caller: CallerDep,
    request: Request,
) -> Response:
    """The events of a job with a `seq` above `after`, oldest first. `next_cursor` is the `after` of the next page.

    With `Accept: text/event-stream` a stream: what has happened, then each event as it happens, up to the last one.
    """
    found = await services.reader.read_status(job_id, owner=caller)
    last = last_event_id(request)
    if wants_stream(request):
        after = query.after if last is None else last
        if found.status in TERMINAL and not await run_in_threadpool(
            _has_events, services.database, job_id, after, owner=caller
        ):
            return Response(status_code=HTTPStatus.NO_CONTENT)  # tells a browser not to connect again
        return stream(_encoded(services.feed.of_job(job_id, owner=caller, after=after), "of_job"), request)
    return await run_in_threadpool(_page_of_job, services.database, job_id, caller, query, request)


@router.get("/events", response_model=Page[JobEventBody], responses=_STREAMED, openapi_extra=_LAST_EVENT_ID)
async def list_all_events(
    query: Annotated[AllEventsQuery, Query()],
    services: ServicesDep,
    caller: CallerDep,
    request: Request,
) -> Response:
    """The events of all your jobs behind the position `after`, in one order. `next_cursor` is the next `after`.

    With `Accept: text/event-stream` a stream that does not end: from now on, or behind `Last-Event-ID` or `after`.
    """
    after = last_event_id(request)
    if wants_stream(request):
        if after is None and "after" in request.query_params:
            after = query.after
        return stream(_encoded(services.feed.of_owner(caller, after=after), "of_owner"), request)
    return await run_in_threadpool(_page_of_all, services.database, caller, query, request)


def wants_stream(request: Request) -> bool:
    """Whether the client asks for server-sent events, and would not rather have JSON."""
    weights: dict[str, float] = {}
    for part in request.headers.get("accept", "").lower().split(","):
        name, *options = (one.strip() for one in part.split(";"))
        given = next((one[2:] for one in options if one.startswith("q=")), "")
        weights[name] = float(given) if _WEIGHT.fullmatch(given) else 1.0
    return weights.get(STREAM, 0.0) >= max(weights.get("application/json", 0.0), 0.001)


async def _encoded(messages: AsyncIterator[EventMessage | int | None], form: str) -> AsyncGenerator[bytes]:
    yield RETRY
    async for message in messages:
        match message:
            case None:
                yield KEEP_ALIVE
            case int():
                yield b"id: %d\n\n" % message
            case _:
                yield getattr(message, form)


def _has_events(database: Database, job_id: str, after: int, *, owner: str) -> bool:
    with database.session(read_only=True) as session:
        return bool(reading.events(session, job_id, after=after, limit=1, owner=owner).items)


def _page_of_job(database: Database, job_id: str, owner: str, query: EventsQuery, request: Request) -> Response:
    with database.session(read_only=True) as session:
        page = reading.events(session, job_id, after=query.after, limit=query.limit, owner=owner)
    return listed(Page[EventBody].of(page), request=request, name="after")


def _page_of_all(database: Database, owner: str, query: AllEventsQuery, request: Request) -> Response:
    number_all(database)
    with database.session(read_only=True) as session:
        found = events_after(session, query.after, limit=query.limit + 1, owner=owner)
    items = tuple(JobEventBody.of(each.event, position=each.position) for each in found[: query.limit])
    more = len(found) > query.limit
    body = Page[JobEventBody](items=items, next_cursor=str(items[-1].position) if more else None)
    return listed(body, request=request, name="after")
