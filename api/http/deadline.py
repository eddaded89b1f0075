"""An answer in bounded time, also where a database or a Hub neither answers nor hangs up.

No driver sees that a server is frozen: its kernel still acknowledges. The request's thread then waits on in the
background, and its client is told to try again.
"""

import asyncio
import math
import time

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.problems import unavailable_response
from replaceme_core.errors import Unavailable

READING_SECONDS = 12.0  # more than the wait for a connection of the pool
WRITING_SECONDS = 25.0  # clients wait 30 as a rule

_SCOPE_KEY = "replaceme.deadline"

_log = structlog.get_logger(__name__)


def check(scope: Scope) -> None:
    """Call right before a commit: a client that was told to try again must not find it done twice."""
    if time.monotonic() > scope.get(_SCOPE_KEY, math.inf):
        raise Unavailable("too late: the client was told to try again")


class Deadline:
    """ASGI middleware: 503 where no response has begun in time."""

    def __init__(
        self, app: ASGIApp, *, reading_seconds: float = READING_SECONDS, writing_seconds: float = WRITING_SECONDS
    ) -> None:
        self._app = app
        self._reading_seconds = reading_seconds
        self._writing_seconds = writing_seconds
        self._left_behind: set[asyncio.Task[None]] = set()

    @property
    def left_behind(self) -> int:
        """How many requests still wait in the background."""
        return len(self._left_behind)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, given_up = False, False
        seconds = self._reading_seconds if scope["method"] in ("GET", "HEAD") else self._writing_seconds
        scope[_SCOPE_KEY] = min(scope.get(_SCOPE_KEY, math.inf), time.monotonic() + seconds)
        loop = asyncio.get_running_loop()
        decided: asyncio.Future[None] = loop.create_future()

        def decide(_: object = None) -> None:
            if not decided.done():
                decided.set_result(None)

        async def noted(message: Message) -> None:
            nonlocal begun
            if not given_up:
                begun = True
                await send(message)

        request = asyncio.create_task(self._run(scope, receive, noted))
        request.add_done_callback(decide)
        timer = loop.call_later(seconds, lambda: None if begun else decide())
        try:
            await decided
            if request.done():
                await request
                return
            given_up = True
            self._left_behind.add(request)
            request.add_done_callback(self._forget)
        finally:
            timer.cancel()
            if not given_up:
                request.cancel()
        _log.warning("no answer in time", method=scope["method"], path=scope["path"][:200], seconds=seconds)
        response = unavailable_response(
            code="unavailable",
            detail=f"there was no answer within {seconds:g} seconds; look whether it was done before you try again",
            headers={"Connection": "close"},
        )
        await response(scope, receive, send)

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)

    def _forget(self, request: asyncio.Task[None]) -> None:
        self._left_behind.discard(request)
        if not request.cancelled() and (error := request.exception()) is not None:
            _log.warning("a request failed after its deadline", error=type(error).__name__)
