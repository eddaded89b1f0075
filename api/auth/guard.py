"""Stands before all routes: who is calling, may they, and have they called too often."""

from collections.abc import Callable
from http import HTTPStatus

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as AsgiScope

from api.auth.caller import set_caller
from api.auth.callers import Callers, Unknown
from api.auth.rate import RateLimits, Usage
from api.auth.scopes import PROBES, is_cancel, scope_of
from api.http.problems import problem_response, unavailable_response
from replaceme_core.errors import Unavailable
from replaceme_core.jobs.access.records import Scope
from replaceme_core.plurals import counted

UNAUTHENTICATED, MISSING_SCOPE, TOO_MANY_REQUESTS = "unauthenticated", "missing_scope", "too_many_requests"
CHALLENGE = 'Bearer realm="replaceme"'


class Guard:
    """ASGI middleware: 401 without a caller, 403 without the scope, 429 above the limit.

    A key that is sent where none is needed is checked too, so that nobody believes in one that is wrong.

    `callers` and `limits` give those of the running application, and are called at each request.
    """

    def __init__(self, app: ASGIApp, *, callers: Callable[[], Callers], limits: Callable[[], RateLimits]) -> None:
        self._app = app
        self._callers = callers
        self._limits = limits

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = path_of(scope)
        needed = scope_of(scope["method"], path)
        if needed is None and (path in PROBES or not _has_key(scope)):
            await self._app(scope, receive, send)
            return
        try:
            caller = await self._callers().identify(scope)
        except Unavailable as error:
            await unavailable_response(code=error.code, detail=error.message)(scope, receive, send)
            return
        if isinstance(caller, Unknown):
            await _refuse_unknown(caller)(scope, receive, send)
            return
        usage = None if is_cancel(scope["method"], path) else await self._limits().count(caller)
        if usage is not None:
            send = _with_usage(usage, send)
            if not usage.is_within:
                await _refuse_usage(usage)(scope, receive, send)
                return
        if needed is not None and needed not in caller.scopes:
            await _refuse_scope(needed)(scope, receive, send)
            return
        set_caller(scope, caller)
        await self._app(scope, receive, send)


def path_of(scope: AsgiScope) -> str:
    """The path below the root under which the service is mounted."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "").rstrip("/")
    return path.removeprefix(root) if root and path.startswith(f"{root}/") else path


def _has_key(scope: AsgiScope) -> bool:
    return any(name == b"authorization" for name, _ in scope["headers"])


def _refuse_unknown(unknown: Unknown) -> ASGIApp:
    challenge = f'{CHALLENGE}, error="invalid_token"' if unknown.has_key else CHALLENGE
    return problem_response(
        status=HTTPStatus.UNAUTHORIZED,
        code=UNAUTHENTICATED,
        detail=unknown.detail,
        headers={"WWW-Authenticate": challenge},
    )


def _refuse_scope(needed: Scope) -> ASGIApp:
    return problem_response(
        status=HTTPStatus.FORBIDDEN,
        code=MISSING_SCOPE,
        detail=f"the key does not have the scope {needed}, which this request needs",
        headers={"WWW-Authenticate": f'{CHALLENGE}, error="insufficient_scope", scope="{needed}"'},
    )


def _refuse_usage(usage: Usage) -> ASGIApp:
    return problem_response(
        status=HTTPStatus.TOO_MANY_REQUESTS,
        code=TOO_MANY_REQUESTS,
        detail=f"more than {counted(usage.limit, 'requests')} in a minute; try again in {usage.reset_seconds} s",
        headers={"Retry-After": str(usage.reset_seconds)},
    )


def _with_usage(usage: Usage, send: Send) -> Send:
    async def send_with_usage(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(usage.headers())
        await send(message)

    return send_with_usage
