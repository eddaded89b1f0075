"""Streams of server-sent events, and an event as one of them: its bytes are made once for all streams that send it."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import cached_property

from fastapi import Request, Response
from starlette.responses import StreamingResponse

from api.auth.caller import Caller, caller_of
from api.auth.callers import Callers
from api.http.requests import is_head
from api.schemas.events import EventBody, JobEventBody
from replaceme_core.errors import InvalidInput, Unavailable
from replaceme_core.ledger.keys import Scope
from replaceme_core.ledger.records import JobEvent
from replaceme_core.ledger.watching import FeedEvent

KEEP_ALIVE = b": keep-alive\n\n"
RETRY = b"retry: 2000\n\n"
"""The first message: after how many milliseconds a browser connects again."""
STREAM = "text/event-stream"
RECHECK_SECONDS = 2.0
"""Between two looks whether the caller of a stream may still have it, if it has something to send."""
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # the latter for nginx, which would collect parts
_LONGEST_ID = 18  # digits
_LAST = ("succeeded", "failed", "cancelled")


class EventMessage:
    """An event in both streams. `position` is 0 where it was read for the stream of one job."""

    def __init__(self, found: FeedEvent) -> None:
        self.position = found.position
        self.owner = found.owner
        self.event: JobEvent = found.event

    @property
    def is_last(self) -> bool:
        """Whether it ends the job."""
        return self.event.type in _LAST

    @cached_property
    def of_job(self) -> bytes:
        """In the stream of its job; the id is the `seq`."""
        return _encoded(self.event.seq, self.event.type, EventBody.of(self.event).model_dump_json())

    @cached_property
    def of_owner(self) -> bytes:
        """In the stream of all jobs; the id is the position."""
        return _encoded(
            self.position, self.event.type, JobEventBody.placed(self.position, self.event).model_dump_json()
        )


def _encoded(number: int, kind: str, data: str) -> bytes:
    return f"id: {number}\nevent: {kind}\ndata: {data}\n\n".encode()


def stream(parts: AsyncGenerator[bytes], request: Request) -> Response:
    """The response of a route that streams. It ends when the caller may no longer read: `parts` must not pause."""
    if is_head(request.scope):
        return Response(headers=_HEADERS, media_type=STREAM)
    return StreamingResponse(_while_allowed(parts, request), headers=_HEADERS, media_type=STREAM)


async def _while_allowed(parts: AsyncGenerator[bytes], request: Request) -> AsyncGenerator[bytes]:
    callers: Callers = request.app.state.services.callers
    owner, due = caller_of(request.scope).owner, time.monotonic() + RECHECK_SECONDS
    async with aclosing(parts):
        async for part in parts:
            if time.monotonic() >= due:
                try:
                    found = await callers.identify(request.scope)
                except Unavailable:
                    pass  # an outage ends nothing
                else:
                    if not (isinstance(found, Caller) and found.owner == owner and Scope.JOBS_READ in found.scopes):
                        return  # a client that connects again gets the reason
                due = time.monotonic() + RECHECK_SECONDS
            yield part


def last_event_id(request: Request) -> int | None:
    """What a client that connects again has received last. Raises `InvalidInput` for one that is no number."""
    text = request.headers.get("last-event-id", "")
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= _LONGEST_ID):
        raise InvalidInput("expected the id of an event that was received, a number", field="Last-Event-ID", value=text)
    return int(text)
