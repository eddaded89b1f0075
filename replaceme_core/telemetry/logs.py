"""Logs of all processes on standard error, one line each: as JSON objects, or as text for people.

Loggers of structlog and of the standard library look alike, and have what `origin.bound` has bound: the ids of request,
job and attempt.
"""

import logging
import sys
from collections.abc import Callable, Sequence
from logging.handlers import WatchedFileHandler
from typing import Any

import structlog
from structlog.dev import ConsoleRenderer
from structlog.stdlib import ExtraAdder, ProcessorFormatter, add_logger_name
from structlog.types import EventDict, Processor, WrappedLogger

from replaceme_core.telemetry.log_format import LogFormat
from replaceme_core.wording import printable

_NAME = "replaceme"
_QUIET = ("httpx2", "httpcore2", "alembic")
"""They log each request, with presigned addresses, or each step."""


def configure(
    form: LogFormat, *, service: str, level: int = logging.INFO, file: str | None = None, replace: bool = False
) -> bool:
    """Set up all logs of this process, which is a `service`; returns false where they are set up already.

    `file`: write to it in place of standard error. `replace`: take the place of handlers that others have set up.
    """
    root = logging.getLogger()
    if any(handler.name == _NAME for handler in root.handlers) or (root.handlers and not replace):
        if not structlog.is_configured():
            _configure_structlog(form, service, lambda: sys.stderr)
        return False
    # the stream as it is now: Celery puts an object in its place that logs what is printed
    handler: logging.StreamHandler[Any]
    handler = logging.StreamHandler(sys.stderr) if file is None else WatchedFileHandler(file, encoding="utf-8")
    handler.name = _NAME
    before: list[Processor] = [add_logger_name, ExtraAdder(), *_common(service)]
    handler.setFormatter(
        ProcessorFormatter(
            foreign_pre_chain=before, processors=[ProcessorFormatter.remove_processors_meta, *_rendering(form)]
        )
    )
    root.handlers = [handler]
    root.setLevel(level)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
    logging.captureWarnings(True)
    _configure_structlog(form, service, lambda: handler.stream)
    return True


def _configure_structlog(form: LogFormat, service: str, stream: Callable[[], Any]) -> None:
    structlog.configure(
        processors=[*_common(service), *_rendering(form)],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        # looked up for each logger: it may be redirected. A line is one write, since other loggers write there too
        logger_factory=lambda *_: structlog.WriteLogger(stream()),
    )


def _common(service: str) -> list[Processor]:
    def add_service(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        event["service"] = service
        event.pop("color_message", None)  # uvicorn's message again, with escape sequences
        return event

    return [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        add_service,
    ]


def _rendering(form: LogFormat) -> Sequence[Processor]:
    match form:
        case LogFormat.JSON:
            return (structlog.processors.format_exc_info, structlog.processors.JSONRenderer())
        case LogFormat.TEXT:
            return (structlog.processors.format_exc_info, _as_text)


_one_line = ConsoleRenderer(colors=False)


def _as_text(logger: WrappedLogger, method: str, event: EventDict) -> str:
    """A line for the event, and indented ones for its `lines` and its stack: no text in it looks like another event."""
    longer = [str(event.pop(name)) for name in ("lines", "stack", "exception") if event.get(name)]
    line = printable(_one_line(logger, method, event))
    return "\n".join([line, *(printable(text, lines=True) for text in longer)]).replace("\n", "\n  ")
