"""The outermost middleware: each request has an id, a line in the log, and is counted.

Never headers, queries, bodies or tokens.
"""

import time
from typing import Protocol

import structlog
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http import request_note
from replaceme_core.telemetry.origin import bound

_log = structlog.get_logger(__name__)
_PROBES = ("/health", "/ready", "/metrics")


class Record(Protocol):
    """Counts a request. `seconds`: until its response began."""

    def __call__(self, *, method: str, route: str | None, status: int, seconds: float) -> None: ...


class RequestLog:
    """ASGI middleware: logs one line per request, and counts it. Successful probes are not logged."""

    def __init__(self, app: ASGIApp, *, record: Record) -> None:
        self._app = app
        self._record = record

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        begun_after: float | None = None
        status = 500  # the server's own response when the application sends none
        note = request_note.begin(scope)

        async def send_and_note_status(message: Message) -> None:
            nonlocal status, begun_after
            if message["type"] == "http.response.start":
                status, begun_after = message["status"], time.perf_counter() - began
                MutableHeaders(scope=message).update(note.headers())
            await send(message)

        with bound(note.origin):
            try:
                await self._app(scope, receive, send_and_note_status)
            finally:
                method, path, seconds = scope["method"], scope["path"], time.perf_counter() - began
                answered = seconds if begun_after is None else begun_after
                self._record(method=method, route=note.route, status=status, seconds=answered)
                if path not in _PROBES or status >= 400:
                    _log.info("request", method=method, path=path[:200], status=status, seconds=round(seconds, 4))
