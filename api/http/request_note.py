"""What the outermost middleware has to know of a request at its end: noted in its ASGI scope on the way.

Middleware in between may copy the scope; the note is one object in all copies.
"""

from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SCOPE_KEY = "replaceme.note"


@dataclass(kw_only=True)
class RequestNote:
    """`route` is the template of the path, such as `/jobs/{job_id}`; `None` until a route has the request."""

    route: str | None = None


def begin(scope: Scope) -> RequestNote:
    """Add an empty note to a request."""
    note = scope[_SCOPE_KEY] = RequestNote()
    return note


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
