"""Stands before all routes: who is calling, may they, have they called too often, do they hold too much.

What a request needs is decided by path and method, so that a new route needs a scope from its first day: nothing is
open because somebody forgot it.
"""

import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from http import HTTPMethod, HTTPStatus

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import FixedWindowRateLimiter
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as AsgiScope

from api.http.callers import CALLER, Caller, Callers, Unknown, limit_of
from api.http.hosts import READING, network_of, path_of
from api.http.problems import problem_of, problem_response
from replaceme_core.errors import MissingScope, TooManyRequests, Unavailable
from replaceme_core.ledger.keys import OF_WEBHOOKS, Scope
from replaceme_core.wording import counted

PROBES = frozenset({"/health", "/ready", "/metrics"})
"""Never limited, and what `Authorization` they get is not looked at here: `/metrics` has a key of its own."""
_PUBLIC_PAGES = ("/", "/ui", "/ui/", "/ui/sign-in", "/ui/sign-out")
PUBLIC = frozenset({*PROBES, *_PUBLIC_PAGES, "/families", "/docs", "/openapi.json"})
"""They say nothing about any caller, and probes and browsers have no key."""
_PUBLIC_FILES = ("/static-offline-docs/", "/ui/static/")
_CHOSEN = "/chosen/compare"
"""Of a form, and only leads on to the page of the comparison."""
_OF_ADMINS = frozenset({"keys", "owners"})
"""Everything under these paths needs `admin`. Elsewhere reading needs `jobs:read`, the rest a scope to write."""


def scopes_of(method: str, path: str) -> tuple[Scope, ...]:
    """The scopes that a request needs, all of them; none: it needs no key. `path` is without the service's root.

    Those of a page are those of the resource that it is about.

    >>> [[*map(str, scopes_of("POST", path))] for path in ("/jobs", "/ui/keys", "/ui/webhooks", "/health")]
    [['jobs:write'], ['admin'], ['webhooks:write', 'jobs:read'], []]
    """
    if path in PUBLIC or path.startswith(_PUBLIC_FILES):
        return ()
    path = path.removeprefix("/ui")
    resource = path.split("/", 2)[1] if path.startswith("/") else ""
    if resource in _OF_ADMINS:
        return (Scope.ADMIN,)
    if method in READING or path == _CHOSEN:
        return (Scope.JOBS_READ,)
    return (Scope.WEBHOOKS_WRITE, OF_WEBHOOKS) if resource == "webhooks" else (Scope.JOBS_WRITE,)


# How many requests a caller may send in a minute. The headers are those of the IETF draft "RateLimit header fields for
# HTTP" (draft-ietf-httpapi-ratelimit-headers-10). Each process counts for itself: behind N processes a caller may get N
# times as much.

_POLICY = "requests"
_WINDOW_SECONDS = 60


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a caller has used of its limit, this request included. `reset_seconds`: until it begins anew."""

    is_within: bool
    limit: int
    remaining: int
    reset_seconds: int

    def headers(self) -> dict[str, str]:
        """`RateLimit-Policy` and `RateLimit`."""
        return {
            "RateLimit-Policy": f'"{_POLICY}";q={self.limit};w={_WINDOW_SECONDS}',
            "RateLimit": f'"{_POLICY}";r={self.remaining};t={self.reset_seconds}',
        }


class RateLimits:
    """Counts requests by key, and all requests without one together."""

    def __init__(self, *, requests_per_minute: int) -> None:
        self._default = requests_per_minute
        self._windows = FixedWindowRateLimiter(MemoryStorage())

    async def count(self, caller: Caller) -> Usage | None:
        """Count a request; `None` where there is no limit."""
        limit = limit_of(caller.limits.requests_per_minute, self._default)
        if limit is None:
            return None
        window = RateLimitItemPerMinute(limit)
        is_within = await self._windows.hit(window, caller.name)
        stats = await self._windows.get_window_stats(window, caller.name)
        reset_seconds = min(max(math.ceil(stats.reset_time - time.time()), 1), _WINDOW_SECONDS)
        return Usage(is_within=is_within, limit=limit, remaining=stats.remaining, reset_seconds=reset_seconds)


CHALLENGE = 'Bearer realm="replaceme"'
HOLD = "replaceme.hold"
"""In the scope of a request: a function that counts its connection for a caller, a key's id or an address.

It returns `None`, or the limit if the caller holds more. Only our own server has it (`api/http/server.py`).
"""


class Guard:
    """ASGI middleware: 401 without a caller, 403 without the scope, 429 above the limits.

    A key that is sent where none is needed is checked too, so that nobody believes in one that is wrong.

    `callers` and `limits` give those of the running application, and are called at each request.
    """

    def __init__(self, app: ASGIApp, *, callers: Callable[[], Callers], limits: Callable[[], RateLimits]) -> None:
        self._app = app
        self._callers = callers
        self._limits = limits

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or path_of(scope) in PROBES:
            await self._app(scope, receive, send)
            return
        refusal, usage = await self._judge(scope)
        await (refusal or self._app)(scope, receive, send if usage is None else _with_usage(usage, send))

    async def _judge(self, scope: AsgiScope) -> tuple[ASGIApp | None, Usage | None]:
        """What refuses a request, if it is refused, and what its caller has used of a limit, if there is one."""
        path = path_of(scope)
        needed = scopes_of(scope["method"], path)
        if not needed and "authorization" not in Headers(scope=scope):
            return _refuse_excess(scope, None), None
        try:
            caller = await self._callers().identify(scope)
        except Unavailable as error:
            return problem_of(error), None
        if isinstance(caller, Unknown):
            return _refuse_unknown(caller), None
        excess, usage = _refuse_excess(scope, caller.key_id), None
        if scope["method"] != HTTPMethod.POST or not path.endswith("/cancel"):  # never limited: it ends work
            usage = await self._limits().count(caller)
            if usage is not None and not usage.is_within:
                return _refuse_usage(usage), usage
            if excess is not None:
                return excess, usage
        scope[CALLER] = caller  # also for the page that refuses
        if not caller.scopes.issuperset(needed):
            return _refuse_scope(needed, caller.scopes), usage
        return None, usage


def _refuse_unknown(unknown: Unknown) -> ASGIApp:
    challenge = f'{CHALLENGE}, error="invalid_token"' if unknown.has_key else CHALLENGE
    headers = {"WWW-Authenticate": challenge}
    return problem_response(status=HTTPStatus.UNAUTHORIZED, detail=unknown.detail, headers=headers)


def _refuse_scope(needed: Collection[Scope], there: Collection[Scope]) -> ASGIApp:
    missing = " and ".join(scope for scope in needed if scope not in there)
    return problem_of(
        MissingScope(f"the key does not have the scope {missing}, which this request needs"),
        headers={"WWW-Authenticate": f'{CHALLENGE}, error="insufficient_scope", scope="{" ".join(needed)}"'},
    )


def _refuse_usage(usage: Usage) -> ASGIApp:
    detail = f"more than {counted(usage.limit, 'requests')} in a minute; try again in {usage.reset_seconds} s"
    return problem_of(TooManyRequests(detail), headers={"Retry-After": str(usage.reset_seconds)})


def _refuse_excess(scope: AsgiScope, key_id: str | None) -> ASGIApp | None:
    """For a caller that holds too many connections: its key or, without one, its address."""
    hold: Callable[[str], int | None] | None = scope.get(HOLD)
    client = scope.get("client")
    limit = None if hold is None else hold(key_id or network_of(client[0] if client else ""))
    if limit is None:
        return None
    detail = f"you hold {limit:,} connections already, streams of events and held responses included; close some"
    return problem_of(TooManyRequests(detail), headers={"Connection": "close"})


def _with_usage(usage: Usage, send: Send) -> Send:
    async def send_with_usage(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(usage.headers())
        await send(message)

    return send_with_usage
