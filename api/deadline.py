"""An answer in bounded time, also where a database or a Hub neither answers nor hangs up.

No driver sees that a server is frozen: its kernel still acknowledges. The request's thread then waits on in the
background, and its client is told to try again.
"""

import asyncio

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import unavailable_response

READING_SECONDS = 12.0  # more than it takes to wait for a connection of the pool
WRITING_SECONDS = 60.0  # more than it takes to wait for another writer on SQLite, or for a slow Hub

_log = structlog.get_logger(__name__)


class Deadline:
    """ASGI middleware: 503 where no response has begun in time."""

    def __init__(
        self, app: ASGIApp, *, reading_seconds: float = READING_SECONDS, writing_seconds: float = WRITING_SECONDS
    ) -> None:
        self._app = app
        self._reading_seconds = reading_seconds
        self._writing_seconds = writing_seconds
        self._left_behind: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, given_up = asyncio.Event(), False

        async def noted(message: Message) -> None:
            if not given_up:
                begun.set()
                await send(message)

        request = asyncio.create_task(self._run(scope, receive, noted))
        beginning = asyncio.create_task(begun.wait())
        seconds = self._reading_seconds if scope["method"] in ("GET", "HEAD") else self._writing_seconds
        try:
            await asyncio.wait({request, beginning}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if request.done() or begun.is_set():
                await request
                return
            given_up = True
            self._left_behind.add(request)
            request.add_done_callback(self._forget)
        finally:
            beginning.cancel()
            if not given_up:
                request.cancel()
        _log.warning("no answer in time", method=scope["method"], path=scope["path"][:200], seconds=seconds)
        response = unavailable_response(
            code="unavailable",
            detail=f"there was no answer within {seconds:g} seconds; what was asked for may have been done or not",
            headers={"Connection": "close"},
        )
        await response(scope, receive, send)

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)

    def _forget(self, request: asyncio.Task[None]) -> None:
        self._left_behind.discard(request)
        if not request.cancelled() and (error := request.exception()) is not None:
            _log.warning("a request failed after its deadline", error=type(error).__name__)
