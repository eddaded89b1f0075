"""Logs and spans of all processes, and the request that work comes from: its id and its place in a trace.

A log is one line for each event on standard error, as a JSON object or as text for people. Loggers of structlog and of
the standard library look alike, and have the ids that `bound` has bound. Spans are exported where the standard
environment of OpenTelemetry asks for them (`OTEL_EXPORTER_OTLP_ENDPOINT`, or another variable that names an exporter);
the SDK is imported only then. Context variables hold all of this, so that no function has to pass it on.
"""

import logging
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar, copy_context
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import partial
from importlib import metadata
from logging.handlers import WatchedFileHandler
from typing import TYPE_CHECKING, Any

import structlog
from opentelemetry import context, trace
from opentelemetry.trace import SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from structlog.contextvars import bound_contextvars
from structlog.dev import ConsoleRenderer
from structlog.stdlib import ExtraAdder, ProcessorFormatter, add_logger_name
from structlog.types import EventDict, Processor, WrappedLogger

from replaceme_core.wording import printable

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

# Where work comes from

LONGEST_ID = 64
_LONGEST_TRACEPARENT = 255
_ID = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{LONGEST_ID - 1}}}")
_TRACE_HEADER = "traceparent"
_trace_context = TraceContextTextMapPropagator()
_request_id: ContextVar[str | None] = ContextVar("request_id", default=None)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """`request_id` is at most 64 plain characters; `traceparent` is as W3C Trace Context, version 00, has it.

    The origin belongs to a request, and to each attempt at a job that the request has made.
    """

    request_id: str | None = None
    traceparent: str | None = None


UNKNOWN = Origin()


def origin() -> Origin:
    """The origin of what is being done. Within a span, its `traceparent` is that of the span."""
    return Origin(request_id=_request_id.get(), traceparent=_traceparent_of(None))


@contextmanager
def bound(found: Origin, **more: object) -> Iterator[None]:
    """Within the context, `origin` returns `found`, and each line of the log has its ids and `more`."""
    names = {"request_id": found.request_id, **more}
    before, outside = _request_id.set(found.request_id), context.attach(_context_of(found.traceparent))
    try:
        with bound_contextvars(**{name: value for name, value in names.items() if value is not None}):
            yield
    finally:
        context.detach(outside)
        _request_id.reset(before)


def in_context(work: Callable[[], None]) -> Callable[[], None]:
    """`work` for another thread, with the origin and the bound names of this one. For one thread only."""
    return partial(copy_context().run, work)


def message_headers() -> dict[str, str]:
    """Headers of a message about what is being done."""
    return {name: value for name, value in asdict(origin()).items() if value is not None}


def from_message(headers: Mapping[str, object] | None) -> Origin:
    """The origin in the headers of a message; what is not valid is left out."""
    given = headers or {}
    return Origin(
        request_id=parse_request_id(given.get("request_id")), traceparent=parse_traceparent(given.get(_TRACE_HEADER))
    )


def parse_request_id(text: object) -> str | None:
    """The id, or `None` if it is too long or has other characters than letters, digits, `.`, `_` and `-`.

    >>> parse_request_id("build-17.a"), parse_request_id("two words"), parse_request_id(None)
    ('build-17.a', None, None)
    """
    return text if isinstance(text, str) and _ID.fullmatch(text) else None


def parse_traceparent(text: object) -> str | None:
    """The header as version 00 has it, whichever version it came in; `None` if it is not valid.

    >>> parse_traceparent("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-later")
    '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01'
    >>> parse_traceparent("00-00000000000000000000000000000000-00f067aa0ba902b7-01")
    """
    is_plain = isinstance(text, str) and len(text) <= _LONGEST_TRACEPARENT
    return _traceparent_of(_context_of(str(text))) if is_plain else None


def _context_of(traceparent: str | None) -> context.Context:
    """A context within the remote span `traceparent`; `None`: within no span."""
    return _trace_context.extract({} if traceparent is None else {_TRACE_HEADER: traceparent}, context.Context())


def _traceparent_of(place: context.Context | None) -> str | None:
    """The `traceparent` of a context, by default the present one."""
    carrier: dict[str, str] = {}
    _trace_context.inject(carrier, place)
    return carrier.get(_TRACE_HEADER)


# Spans

Attributes = Mapping[str, str | int]
JOB_ID, ATTEMPT, OUTCOME = "replaceme.job.id", "replaceme.attempt", "replaceme.outcome"
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_HTTP = "http/protobuf"
_provider: "TracerProvider | None" = None
_tracer: trace.Tracer = trace.NoOpTracer()

logger = logging.getLogger(__name__)


def configure_spans(environ: Mapping[str, str], *, service: str) -> None:
    """Export spans from this process, if the environment asks for them. What is not possible is logged, and no error.

    The SDK reads the rest of the environment itself: endpoint, headers, sampler, limits, batches. The provider is not
    the global one, so that libraries add no spans of their own, whose attributes nobody here has looked at.
    """
    global _provider, _tracer  # one for each process, like its log
    exporter = environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    is_wanted = exporter or any(environ.get(name) for name in _ENDPOINTS)
    is_off = exporter == "none" or environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if _provider is not None or is_off or not is_wanted:
        return
    protocol = next((environ[name] for name in _PROTOCOLS if environ.get(name)), _HTTP)
    if exporter not in ("", "otlp") or protocol != _HTTP:
        logger.warning("no spans: expected OTEL_TRACES_EXPORTER=otlp over %s, got %s, %s", _HTTP, exporter, protocol)
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        logger.warning("no spans: install them with: pip install 'replaceme[telemetry]' (%s)", error)
        return
    release = metadata.version("replaceme")
    known = {SERVICE_VERSION: release}
    if not environ.get("OTEL_SERVICE_NAME") and "service.name=" not in environ.get("OTEL_RESOURCE_ATTRIBUTES", ""):
        known[SERVICE_NAME] = f"replaceme-{service}"
    # without an exit handler, which would wait for a collector that does not answer
    _provider = TracerProvider(resource=Resource.create(known), shutdown_on_exit=False)
    _provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _tracer = _provider.get_tracer("replaceme", release)


def flush_spans(*, seconds: float = 2.0) -> None:
    """Export what has ended, for at most `seconds`: the SDK itself waits for as long as its exporter does."""
    if _provider is not None:
        thread = threading.Thread(target=_provider.force_flush, name="flush-spans", daemon=True)
        thread.start()
        thread.join(seconds)


def start_span(name: str, *, attributes: Attributes) -> trace.Span:
    """A part of what is being done. The caller ends it.

    Attributes of spans never have secrets, and nothing that a client has made up but its ids.
    """
    return _tracer.start_span(name, attributes=attributes)


@contextmanager
def span(
    name: str, *, kind: SpanKind, link: str | None = None, attributes: Attributes | None = None
) -> Iterator[trace.Span]:
    """A span around what is done in the context, whose origin it becomes. An error marks it as failed.

    `link` is the traceparent of another span that led here.
    """
    links = [] if link is None else [trace.Link(trace.get_current_span(_context_of(link)).get_span_context())]
    with _tracer.start_as_current_span(
        name, kind=kind, links=links, attributes=attributes, record_exception=False, set_status_on_exception=False
    ) as started:
        try:
            yield started
        except BaseException as error:
            mark_failed(started, type(error).__name__)  # never its text, which may quote anything
            raise


def publication(job_id: str, *, queue: str) -> AbstractContextManager[trace.Span]:
    """A span around the sending of a wake-up message."""
    names = {"messaging.operation.name": "send", "messaging.destination.name": queue, JOB_ID: job_id}
    return span(f"send {queue}", kind=SpanKind.PRODUCER, attributes=names)


def mark_failed(failed: trace.Span, code: str) -> None:
    """What is done has failed, with a code of `replaceme_core.errors`, an HTTP status or the name of an exception."""
    failed.set_attribute("error.type", code)
    failed.set_status(trace.StatusCode.ERROR)


# Logs


class LogFormat(StrEnum):
    """`json`: an object a line, for programs; `text`: for people."""

    JSON = "json"
    TEXT = "text"


_HANDLER = "replaceme"
_QUIET = ("httpx2", "httpcore2", "alembic")
"""They log each request, with presigned addresses, or each step."""


def configure_logs(
    form: LogFormat, *, service: str, level: int = logging.INFO, file: str | None = None, replace: bool = False
) -> bool:
    """Set up all logs of this process, which is a `service`; returns false where they are set up already.

    `file`: write to it in place of standard error. `replace`: take the place of handlers that others have set up.
    """
    root = logging.getLogger()
    if any(handler.name == _HANDLER for handler in root.handlers) or (root.handlers and not replace):
        if not structlog.is_configured():
            _configure_structlog(form, service, lambda: sys.stderr)
        return False
    # the stream as it is now: Celery puts an object in its place that logs what is printed
    handler: logging.StreamHandler[Any]
    handler = logging.StreamHandler(sys.stderr) if file is None else WatchedFileHandler(file, encoding="utf-8")
    handler.name = _HANDLER
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
        logger_factory=lambda *_: _Lines(stream()),
    )


class _Lines(structlog.WriteLogger):
    """Leaves out a line that cannot be written, as loggers of the standard library do: a request or a thread must not
    fail because the disk of the log is full, or nobody reads it any more.
    """

    def msg(self, message: str) -> None:
        with suppress(OSError):
            super().msg(message)

    debug = info = warning = error = critical = msg


def _common(service: str) -> list[Processor]:
    def add_service_and_trace(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        event["service"] = service
        event.pop("color_message", None)  # uvicorn's message again, with escape sequences
        place = trace.get_current_span().get_span_context()
        if place.is_valid:
            event["trace_id"] = trace.format_trace_id(place.trace_id)
        return event

    return [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        add_service_and_trace,
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
