"""The outermost middleware: each request has an id, a line in the log, and is counted.

Never headers, queries, bodies or tokens.
"""

import time
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import structlog
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http import request_note
from replaceme_core.telemetry import tracing
from replaceme_core.telemetry.origin import bound, origin

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
                note.complete(MutableHeaders(scope=message))
            await send(message)

        method, path = request_note.method_of(scope), scope["path"]
        with bound(note.origin), _span(method, path) as span:
            note.origin = origin()  # within the span
            try:
                await self._app(scope, receive, send_and_note_status)
            finally:
                seconds = time.perf_counter() - began
                _describe(span, method=method, route=note.route, status=status)
                answered = seconds if begun_after is None else begun_after
                self._record(method=method, route=note.route, status=status, seconds=answered)
                if path not in _PROBES or status >= 400:
                    _log.info("request", method=method, path=path[:200], status=status, seconds=round(seconds, 4))


def _span(method: str, path: str) -> AbstractContextManager[tracing.Span]:
    return nullcontext(tracing.NO_SPAN) if path in _PROBES else tracing.span(method, kind=tracing.Kind.SERVER)


def _describe(span: tracing.Span, *, method: str, route: str | None, status: int) -> None:
    """The template of the route, and never the path or the query, which clients make up."""
    span.set({"http.request.method": method, "http.response.status_code": status})
    if route is not None:
        span.rename(f"{method} {route}")
        span.set({"http.route": route})
    if status >= 500:
        span.fail(str(status))
