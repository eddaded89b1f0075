"""Spans by the SDK of OpenTelemetry, exported as OTLP over HTTP. Imported by `tracing.py`, and only if they are wanted.

The SDK itself reads the rest of its environment: endpoint, headers, sampler, limits, batches. The provider is not the
global one, so that libraries add no spans of their own, whose attributes nobody here has looked at.
"""

import threading
from collections.abc import Mapping
from importlib import metadata
from typing import Final

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from replaceme_core.telemetry.tracing import Attributes, Kind

_KINDS: Final = {
    Kind.SERVER: SpanKind.SERVER,
    Kind.PRODUCER: SpanKind.PRODUCER,
    Kind.CONSUMER: SpanKind.CONSUMER,
    Kind.INTERNAL: SpanKind.INTERNAL,
}
_NAMED = ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES")


class OtlpSpan:
    """A span of the SDK."""

    def __init__(self, span: trace.Span) -> None:
        self._span = span

    @property
    def traceparent(self) -> str | None:
        context = self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def set(self, attributes: Attributes) -> None:
        self._span.set_attributes(attributes)

    def fail(self, code: str) -> None:
        self._span.set_attribute("error.type", code)
        self._span.set_status(Status(StatusCode.ERROR))

    def end(self) -> None:
        self._span.end()


class OtlpTracer:
    """Makes spans, and exports them from a thread of its own."""

    def __init__(self, environ: Mapping[str, str], *, service: str) -> None:
        known = {SERVICE_VERSION: metadata.version("replaceme")}
        if not environ.get(_NAMED[0]) and "service.name=" not in environ.get(_NAMED[1], ""):
            known[SERVICE_NAME] = f"replaceme-{service}"
        # without an exit handler, which would wait for a collector that does not answer
        self._provider = TracerProvider(resource=Resource.create(known), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("replaceme", metadata.version("replaceme"))

    def start(self, name: str, *, kind: Kind, parent: str | None, link: str | None, attributes: Attributes) -> OtlpSpan:
        """A span with the remote span `parent`, or the first one of a trace."""
        context = None if parent is None else trace.set_span_in_context(NonRecordingSpan(_context_of(parent)))
        links = [] if link is None else [Link(_context_of(link))]
        return OtlpSpan(
            self._tracer.start_span(
                # an empty context: that of the process belongs to others
                name,
                context=context or trace.set_span_in_context(trace.INVALID_SPAN),
                kind=_KINDS[kind],
                attributes=attributes,
                links=links,
            )
        )

    def flush(self, seconds: float) -> None:
        """Export what has ended. The SDK waits for as long as its exporter does; this does not."""
        thread = threading.Thread(target=self._provider.force_flush, name="flush-spans", daemon=True)
        thread.start()
        thread.join(seconds)


def _context_of(traceparent: str) -> SpanContext:
    """The span that a valid `traceparent` names."""
    _, trace_id, span_id, flags = traceparent.split("-")
    return SpanContext(
        trace_id=int(trace_id, 16), span_id=int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16))
    )
