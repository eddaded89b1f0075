"""What the outermost middleware has to know of a request at its end: noted in its ASGI scope on the way.

Middleware in between may copy the scope; the note is one object in all copies.
"""

from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from replaceme_core.telemetry.origin import Origin, new_request_id, parse_request_id, parse_traceparent

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER = "other"
_SCOPE_KEY = "replaceme.note"
_ID_HEADER, _TRACE_HEADER = "X-Request-ID", "traceparent"

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
_RAW_FOR_BROWSERS = [(name.lower().encode(), value.encode()) for name, value in FOR_BROWSERS.items()]


@dataclass(kw_only=True)
class RequestNote:
    """`route` is the template of the path, such as `/jobs/{job_id}`; `None` until a route has the request."""

    origin: Origin
    route: str | None = None

    def complete(self, headers: MutableHeaders) -> None:
        """Add what each response has: `X-Request-ID`, within a trace `traceparent`, and the headers for browsers."""
        for name, value in ((_ID_HEADER, self.origin.request_id), (_TRACE_HEADER, self.origin.traceparent)):
            if value is not None:
                headers[name] = value
        there = {name for name, _ in headers.raw}
        headers.raw.extend(field for field in _RAW_FOR_BROWSERS if field[0] not in there)


def begin(scope: Scope) -> RequestNote:
    """Note where a request comes from: the ids that it carries, or a new one where it has no valid one."""
    headers = Headers(scope=scope)
    note = scope[_SCOPE_KEY] = RequestNote(
        origin=Origin(
            request_id=parse_request_id(_only(headers, _ID_HEADER)) or new_request_id(),
            traceparent=parse_traceparent(_only(headers, _TRACE_HEADER)),
        )
    )
    return note


def set_route(scope: Scope, route: str) -> None:
    """For a response that is made before a route has the request."""
    note: RequestNote | None = scope.get(_SCOPE_KEY)
    if note is not None:
        note.route = route


def method_of(scope: Scope) -> str:
    """The method as metrics and spans name it: clients can make up others."""
    method: str = scope["method"]
    return method if method in METHODS else OTHER


def complete(scope: Scope, headers: MutableHeaders) -> None:
    """Add the same to a response that does not pass through `RequestLog`."""
    note: RequestNote = scope[_SCOPE_KEY]
    note.complete(headers)


def _only(headers: Headers, name: str) -> str | None:
    values = headers.getlist(name)
    return values[0] if len(values) == 1 else None


class RouteNote:
    """ASGI middleware, the innermost one: notes the route when the response begins."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        note: RequestNote | None = scope.get(_SCOPE_KEY)
        if note is None:
            await self._app(scope, receive, send)
            return

        def note_route() -> None:
            note.route = getattr(scope.get("route"), "path_format", None)

        async def send_and_note_route(message: Message) -> None:
            if message["type"] == "http.response.start":
                note_route()
            await send(message)

        try:
            await self._app(scope, receive, send_and_note_route)
        except BaseException:
            note_route()  # the response comes from outside of this
            raise
