"""The outermost middleware: each request has an id, a place in a trace, a line in the log, and is counted.

Never headers, queries, bodies or tokens. All other middleware has one ASGI scope, a copy of the server's: what is
changed in it on the way, and the route, is known here at the end, and the server does not see it. In the copy `HEAD`
is `GET`, which is answered in the same way: the server sends no body then.
"""

import time
from collections.abc import Callable
from contextlib import nullcontext
from uuid import uuid4

import structlog
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.guard import PROBES
from api.http.problems import internal_error
from replaceme_core import telemetry
from replaceme_core.telemetry import Origin, bound, origin, parse_request_id, parse_traceparent

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER = "other"
POLICY = (
    # nothing from elsewhere, and nothing that is written into the page itself
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
FOR_BROWSERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",  # with no-referrer browsers send `Origin: null`, which forms must not have
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Of every response, JSON, streams and errors too, unless it has its own: a report and its pictures have a policy."""
HEAD = "replaceme.head"
"""In the scope where the client asked for the headers only."""
ROUTE = "replaceme.route"
"""In the scope of a response that is made before a route has the request: the template of its path."""
_ID_HEADER, _TRACE_HEADER = "X-Request-ID", "traceparent"

_log = structlog.get_logger(__name__)


class RequestLog:
    """ASGI middleware: logs one line per request, and counts it. Successful probes are not logged.

    Adds to each response `X-Request-ID`, within a trace `traceparent`, and the headers for browsers. A bug that left no
    response is an internal error.

    `record` counts one as `Monitoring.record_request` does.
    """

    def __init__(self, app: ASGIApp, *, record: Callable[..., None]) -> None:
        self._app = app
        self._record = record

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        begun_after: float | None = None
        status = 500  # the server's own response when the application sends none
        found = _origin_of(Headers(scope=scope))

        async def send_and_note_status(message: Message) -> None:
            nonlocal status, begun_after
            if message["type"] == "http.response.start":
                status, begun_after = message["status"], time.perf_counter() - began
                headers = MutableHeaders(scope=message)
                for name, value in ((_ID_HEADER, found.request_id), (_TRACE_HEADER, found.traceparent)):
                    if value is not None:
                        headers[name] = value
                for name, value in FOR_BROWSERS.items():
                    headers.setdefault(name, value)
            await send(message)

        # the method as metrics and spans name it: clients can make up others
        method, path = scope["method"] if scope["method"] in METHODS else OTHER, scope["path"]
        traced = nullcontext(INVALID_SPAN) if path in PROBES else telemetry.span(method, kind=SpanKind.SERVER)
        with bound(found), traced as span:
            found = origin()  # within the span
            shared = {**scope, **({"method": "GET", HEAD: True} if method == "HEAD" else {})}
            try:
                await self._app(shared, receive, send_and_note_status)
            except Exception:
                if begun_after is None:
                    await internal_error()(shared, receive, send_and_note_status)
                raise  # a bug: the server logs the traceback
            finally:
                seconds = time.perf_counter() - began
                route = shared.get(ROUTE) or getattr(shared.get("route"), "path_format", None)
                _describe(span, method=method, route=route, status=status)
                answered = seconds if begun_after is None else begun_after
                self._record(method=method, route=route, status=status, seconds=answered)
                if path not in PROBES or status >= 400:
                    _log.info("request", method=method, path=path[:200], status=status, seconds=round(seconds, 4))


def _origin_of(headers: Headers) -> Origin:
    """The ids that a request carries, or a new id where it has no valid one."""
    request_ids, traces = headers.getlist(_ID_HEADER), headers.getlist(_TRACE_HEADER)
    return Origin(
        request_id=parse_request_id(request_ids[0] if len(request_ids) == 1 else None) or uuid4().hex,
        traceparent=parse_traceparent(traces[0] if len(traces) == 1 else None),
    )


def _describe(span: Span, *, method: str, route: str | None, status: int) -> None:
    """The template of the route, and never the path or the query, which clients make up."""
    span.set_attributes({"http.request.method": method, "http.response.status_code": status})
    if route is not None:
        span.update_name(f"{method} {route}")
        span.set_attribute("http.route", route)
    if status >= 500:
        telemetry.mark_failed(span, str(status))
