"""Stands before all pages: opens the session, keeps pages out of caches, shows errors as pages.

Within it a page is a route like any other: the same guard, the same problems (RFC 9457). What leaves it is for people.
"""

import json
from collections.abc import Callable
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.auth.guard import path_of
from api.auth.sessions import COOKIE, SESSION_SECONDS, Session, Sessions, session_of, set_session
from api.http.problems import PROBLEM_JSON, internal_error
from api.web.rendering import page, root_of

PREFIX = "/ui/"
SIGN_IN = "/ui/sign-in"
_STATIC = "/ui/static/"
_HTML = "text/html"


class Pages:
    """ASGI middleware for everything below `/ui/`. `sessions` gives those of the running application."""

    def __init__(self, app: ASGIApp, *, sessions: Callable[[], Sessions]) -> None:
        self._app = app
        self._sessions = sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = path_of(scope) if scope["type"] == "http" else ""
        if not path.startswith(PREFIX):
            await self._app(scope, receive, send)
            return
        is_new = False
        if not path.startswith(_STATIC):
            known = self._sessions().open(_cookie_of(scope))
            is_new = known is None
            set_session(scope, known or Session.start())
        problem: _Problem | None = None
        started = False

        async def send_page(message: Message) -> None:
            nonlocal problem, started
            started = True
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("Cache-Control", "no-store")
                kind = headers.get("content-type", "").partition(";")[0]
                if is_new and kind == _HTML and "set-cookie" not in headers:
                    self._keep(scope, headers)
                if kind == PROBLEM_JSON and not path.startswith(_STATIC):
                    problem = _Problem(message)
                    return
            elif problem is not None:
                problem.body += message.get("body", b"")
                if message.get("more_body", False):
                    return
                answer, problem = problem.as_page(scope), None
                if is_new:
                    self._keep(scope, answer.headers)
                await answer(scope, receive, send)
                return
            await send(message)

        try:
            await self._app(scope, receive, send_page)
        except Exception:
            if not started:  # else the framework would answer outside of this, without a page
                await internal_error()(scope, receive, send_page)
            raise

    def _keep(self, scope: Scope, headers: MutableHeaders) -> None:
        session = session_of(scope)
        assert session is not None
        headers.append("Set-Cookie", cookie(self._sessions().seal(session), scope))


class _Problem:
    """An error on its way out."""

    def __init__(self, start: Message) -> None:
        self.status = HTTPStatus(start["status"]) if start["status"] in set(HTTPStatus) else HTTPStatus.BAD_REQUEST
        self.headers = Headers(raw=start["headers"])
        self.body = b""

    def as_page(self, scope: Scope) -> Response:
        """The page; where somebody has to sign in, the way there."""
        kept = {name: value for name, value in self.headers.items() if name not in ("content-type", "content-length")}
        is_part = "hx-request" in Headers(scope=scope)
        if self.status is HTTPStatus.UNAUTHORIZED:
            kept.pop("www-authenticate", None)
            here = scope["path"].removeprefix(root_of(scope))
            there = f"{root_of(scope)}{SIGN_IN}"
            if is_part:
                return Response(status_code=self.status, headers={**kept, "HX-Redirect": there})
            if scope["method"] == "GET" and "text/event-stream" not in Headers(scope=scope).get("accept", ""):
                query = scope["query_string"].decode("latin-1")
                there += "?" + urlencode({"next": f"{here}?{query}" if query else here})
            return RedirectResponse(there, status_code=HTTPStatus.SEE_OTHER, headers=kept)
        problem = json.loads(self.body)
        return page("error.html", scope, status=self.status, headers=kept, problem=problem)


def cookie(value: str, scope: Scope, *, seconds: int = SESSION_SECONDS) -> str:
    """The header `Set-Cookie` of a session: for pages alone, out of reach of scripts and of other sites."""
    secure = "; Secure" if scope.get("scheme") == "https" else ""
    path = f"{root_of(scope)}/ui"
    return f"{COOKIE}={value}; Max-Age={seconds}; Path={path}; HttpOnly; SameSite=Strict{secure}"


def _cookie_of(scope: Scope) -> str:
    found: SimpleCookie = SimpleCookie()
    try:
        found.load(Headers(scope=scope).get("cookie", ""))
    except CookieError:
        return ""
    return found[COOKIE].value if COOKIE in found else ""
