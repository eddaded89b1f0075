"""Structured logs on standard error, one JSON object per line. Never headers, queries, bodies or tokens."""

import logging
import sys
import time

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_log = structlog.get_logger(__name__)
_PROBES = ("/health", "/ready")


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


class RequestLog:
    """ASGI middleware: logs one line per request. Successful health checks are not logged."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        status = 500  # the server's own response when the application sends none

        async def send_and_note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_note_status)
        finally:
            if scope["path"] not in _PROBES or status >= 400:
                seconds = round(time.perf_counter() - began, 4)
                _log.info("request", method=scope["method"], path=scope["path"][:200], status=status, seconds=seconds)
