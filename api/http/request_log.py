"""Structured logs on standard error, one JSON object per line. Never headers, queries, bodies or tokens."""

import logging
import sys
import time
from typing import Protocol

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http import request_note

_log = structlog.get_logger(__name__)
_PROBES = ("/health", "/ready", "/metrics")


def configure() -> None:
    """Configure structlog, unless it is configured already."""
    if structlog.is_configured():
        return
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),  # looked up for each logger: it may be redirected
    )


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
            await send(message)

        try:
            await self._app(scope, receive, send_and_note_status)
        finally:
            method, seconds = scope["method"], time.perf_counter() - began
            self._record(
                method=method, route=note.route, status=status, seconds=seconds if begun_after is None else begun_after
            )
            if scope["path"] not in _PROBES or status >= 400:
                _log.info("request", method=method, path=scope["path"][:200], status=status, seconds=round(seconds, 4))
