"""`HEAD` wherever there is `GET`: the same status and headers, without the body."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SCOPE_KEY = "replaceme.head"


def is_head(scope: Scope) -> bool:
    """Whether the client asked for the headers only. The method in the scope is `GET` then."""
    return bool(scope.get(_SCOPE_KEY))


class Head:
    """ASGI middleware: answers `HEAD` as `GET` and drops the body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_without_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        await self._app({**scope, "method": "GET", _SCOPE_KEY: True}, receive, send_without_body)
