"""Which pages in a browser may use the API: those of the origins in the settings, by default none.

Without credentials: the API knows no cookies, and a page sends its key in a header.
"""

from collections.abc import Callable
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE"
_SENT = (
    "Authorization, Content-Type, If-Match, If-None-Match, Idempotency-Key, Last-Event-ID, Prefer, traceparent, "
    "X-Request-ID"
)
_SHOWN = (
    "ETag, Idempotent-Replayed, Link, Location, Preference-Applied, RateLimit, RateLimit-Policy, Retry-After, "
    "X-Request-ID, traceparent"
)
_PREFLIGHT_SECONDS = "600"


class Cors:
    """ASGI middleware: answers the browser's question, and tells it that the page may read the answers."""

    def __init__(self, app: ASGIApp, *, origins: Callable[[], tuple[str, ...]]) -> None:
        self._app = app
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        allowed = self._origins() if scope["type"] == "http" else ()
        if not allowed:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        known = origin in allowed
        if known and scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            answer = Response(status_code=HTTPStatus.NO_CONTENT)
            _allow(answer.headers, origin)
            answer.headers["Access-Control-Allow-Methods"] = _METHODS
            answer.headers["Access-Control-Allow-Headers"] = _SENT
            answer.headers["Access-Control-Max-Age"] = _PREFLIGHT_SECONDS
            await answer(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                answered = MutableHeaders(scope=message)
                if known:
                    _allow(answered, origin)
                    answered["Access-Control-Expose-Headers"] = _SHOWN
                else:
                    answered.add_vary_header("Origin")
            await send(message)

        await self._app(scope, receive, send_with_headers)


def _allow(headers: MutableHeaders, origin: str | None) -> None:
    headers["Access-Control-Allow-Origin"] = origin or ""
    headers.add_vary_header("Origin")
