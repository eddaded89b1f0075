"""Spans of what processes do, where the standard environment of OpenTelemetry asks for them; else nothing at all.

`OTEL_EXPORTER_OTLP_ENDPOINT`, or another variable that names an exporter, turns them on. Only then is the SDK imported
(`otlp.py`). The trace is that of `origin`: a span is the parent of what is done within it, of messages that are sent
and of jobs that are made.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import replace
from enum import StrEnum
from typing import Protocol

from replaceme_core.telemetry.origin import bound, origin

Attributes = Mapping[str, str | int]
JOB_ID, ATTEMPT, OUTCOME = "replaceme.job.id", "replaceme.attempt", "replaceme.outcome"
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_HTTP = "http/protobuf"

logger = logging.getLogger(__name__)


class Kind(StrEnum):
    """How a span relates to others: it answers a request, sends a message, works on one, or is a part of these."""

    SERVER = "server"
    PRODUCER = "producer"
    CONSUMER = "consumer"
    INTERNAL = "internal"


class Span(Protocol):
    """A span that has begun. Attributes never have secrets, and nothing that a client has made up but its ids."""

    @property
    def traceparent(self) -> str | None: ...

    def rename(self, name: str) -> None: ...

    def set(self, attributes: Attributes) -> None: ...

    def fail(self, code: str) -> None:
        """Mark what is done as failed, with a code of `replaceme_core.errors` or an HTTP status."""

    def end(self) -> None: ...


class Tracer(Protocol):
    def start(self, name: str, *, kind: Kind, parent: str | None, link: str | None, attributes: Attributes) -> Span: ...

    def flush(self, seconds: float) -> None: ...


class _NoSpan:
    """What there is where nobody wants spans."""

    traceparent: str | None = None

    def rename(self, name: str) -> None:
        pass

    def set(self, attributes: Attributes) -> None:
        pass

    def fail(self, code: str) -> None:
        pass

    def end(self) -> None:
        pass


NO_SPAN: Span = _NoSpan()
_NONE: Attributes = {}
_current: ContextVar[Span] = ContextVar("span", default=NO_SPAN)
_tracer: Tracer | None = None


def is_wanted(environ: Mapping[str, str]) -> bool:
    """Whether the environment asks for spans."""
    exporter = environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or exporter == "none":
        return False
    return bool(exporter) or any(environ.get(name) for name in _ENDPOINTS)


def configure(environ: Mapping[str, str], *, service: str) -> None:
    """Turn spans on in this process, if they are wanted. What is not possible is logged, and nothing else fails."""
    global _tracer  # one for each process, like its log
    if _tracer is not None or not is_wanted(environ):
        return
    exporter = environ.get("OTEL_TRACES_EXPORTER", "").strip().lower() or "otlp"
    protocol = next((environ[name] for name in _PROTOCOLS if environ.get(name)), _HTTP)
    if exporter != "otlp" or protocol != _HTTP:
        logger.warning("no spans: expected OTEL_TRACES_EXPORTER=otlp over %s, got %s, %s", _HTTP, exporter, protocol)
        return
    try:
        from replaceme_core.telemetry.otlp import OtlpTracer
    except ImportError as error:
        logger.warning("no spans: install them with: pip install 'replaceme[telemetry]' (%s)", error)
        return
    _tracer = OtlpTracer(environ, service=service)


def flush(*, seconds: float = 2.0) -> None:
    """Export what has ended, for at most `seconds`."""
    if _tracer is not None:
        _tracer.flush(seconds)


def current_span() -> Span:
    """The innermost span that `span` has begun."""
    return _current.get()


def start(name: str, *, attributes: Attributes = _NONE) -> Span:
    """A part of what is being done. The caller ends it."""
    if _tracer is None:
        return NO_SPAN
    return _tracer.start(name, kind=Kind.INTERNAL, parent=origin().traceparent, link=None, attributes=attributes)


def publication(job_id: str, *, queue: str) -> AbstractContextManager[Span]:
    """A span around the sending of a wake-up message."""
    names = {"messaging.operation.name": "send", "messaging.destination.name": queue, JOB_ID: job_id}
    return span(f"send {queue}", kind=Kind.PRODUCER, attributes=names)


@contextmanager
def span(name: str, *, kind: Kind, link: str | None = None, attributes: Attributes = _NONE) -> Iterator[Span]:
    """A span around what is done in the context, whose origin it becomes. An error marks it as failed.

    `link` is the traceparent of another span that led here.
    """
    if _tracer is None:
        yield NO_SPAN
        return
    found = origin()
    started = _tracer.start(name, kind=kind, parent=found.traceparent, link=link, attributes=attributes)
    token = _current.set(started)
    try:
        with bound(replace(found, traceparent=started.traceparent)):
            yield started
    except BaseException as error:
        started.fail(type(error).__name__)  # never its text, which may quote anything
        raise
    finally:
        _current.reset(token)
        started.end()
