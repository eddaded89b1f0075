"""Responses in time: in bounded time even if a database or the Hub hangs, and soon while other threads work.

No driver detects a frozen server, since the server's kernel still acknowledges packets. After the deadline the client
receives 503, and the thread of its request keeps waiting in the background.
"""

import asyncio
import gc
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.problems import problem_of
from replaceme_core.errors import Unavailable

READING_SECONDS = 12.0  # more than the wait for a connection of the pool
WRITING_SECONDS = 25.0  # most clients time out after 30

SWITCH_SECONDS: Final = 0.0005

_SCOPE_KEY = "replaceme.deadline"

_log = structlog.get_logger(__name__)


def check(scope: Scope) -> None:
    """Raises `Unavailable` after the request's deadline. Call right before a commit.

    The client has received 503 by then and may retry: a late commit would do the work twice.
    """
    if time.monotonic() > scope.get(_SCOPE_KEY, math.inf):
        raise Unavailable("the request passed its deadline and was not committed; try again")


def extend(scope: Scope, seconds: float) -> None:
    """Move the request's deadline by `seconds`: the client prefers to wait."""
    if _SCOPE_KEY in scope:
        scope[_SCOPE_KEY] += seconds


class Deadline:
    """ASGI middleware: responds 503 if no response has started before the deadline."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.abandoned: set[asyncio.Future[None]] = set()
        """Requests that are past their deadline and still running in the background."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _SCOPE_KEY in scope:  # else two would respond to one request
            await self._app(scope, receive, send)
            return
        started, abandoned = False, False
        seconds = READING_SECONDS if scope["method"] == "GET" else WRITING_SECONDS
        scope[_SCOPE_KEY] = time.monotonic() + seconds

        async def send_unless_abandoned(message: Message) -> None:
            nonlocal started
            if not abandoned:
                started = True
                await send(message)

        request = asyncio.ensure_future(self._app(scope, receive, send_unless_abandoned))
        try:
            while not request.done():
                left = None if started else scope[_SCOPE_KEY] - time.monotonic()  # it may be extended meanwhile
                if left is not None and left <= 0:
                    abandoned = True
                    break
                await asyncio.wait({request}, timeout=left)
        finally:
            if not abandoned:
                request.cancel()
        if not abandoned:
            await request
            return
        self.abandoned.add(request)
        request.add_done_callback(self._forget)
        _log.warning("request passed its deadline", method=scope["method"], path=scope["path"][:200], seconds=seconds)
        late = f"no response within {seconds:g} seconds; check whether the request took effect before you retry"
        await problem_of(Unavailable(late), headers={"Connection": "close"})(scope, receive, send)

    def _forget(self, request: asyncio.Future[None]) -> None:
        self.abandoned.discard(request)
        if not request.cancelled() and (error := request.exception()) is not None:
            _log.warning("request failed after its deadline", error=type(error).__name__)


@contextmanager
def low_latency() -> Iterator[None]:
    """Settings of the interpreter that keep the latency of responses low. Use once per process.

    The interpreter runs one thread at a time. A waiting thread requests the lock only after the switch interval, and
    the event loop needs the lock for each of its steps: with the default interval of 5 ms, a response that takes 1 ms
    waits for tens of milliseconds while another request submits a job. Likewise, a full garbage collection stops all
    threads while it visits every object that the imports created, so these are exempted from it.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        sys.setswitchinterval(before)
