"""Stands before all pages: opens the session, refuses forms without its token, shows errors as pages.

Within it a page is a route like any other: the same guard, the same problems (RFC 9457). What leaves it is for people.
"""

import hashlib
import hmac
import json
import re
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Annotated
from urllib.parse import parse_qsl, urlencode

from fastapi import Depends, Request, Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.dashboard.rendering import STATIC, page
from api.http.callers import COOKIE, SESSION, SESSION_SECONDS, Session, Sessions, session_of
from api.http.hosts import READING, path_of, root_of
from api.http.problems import AS_PAGE, MalformedBody

PREFIX = "/ui/"
SIGN_IN = "/ui/sign-in"
_A_YEAR = "public, max-age=31536000, immutable"
_HTML = "text/html"
CSRF_FIELD = "csrf_token"
_FORM = "application/x-www-form-urlencoded"
_MOST_FIELDS = 100
_PORT = re.compile(r":(\d+)$", re.ASCII)


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
        is_new, is_file = False, path.startswith(STATIC)
        if not is_file:
            known = self._sessions().open(Request(scope).cookies.get(_name_of(scope), ""))
            is_new, session = known is None, known or Session.start()
            scope.update({SESSION: session, AS_PAGE: page_of_problem})

        async def send_page(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("Cache-Control", _A_YEAR if is_file and message["status"] < 400 else "no-store")
                is_page = headers.get("content-type", "").startswith(_HTML)
                if is_new and is_page and "set-cookie" not in headers:
                    headers.append("Set-Cookie", cookie(self._sessions().seal(session), scope))
            await send(message)

        await self._app(scope, receive, send_page)


def page_of_problem(problem: Response, scope: Scope) -> Response:
    """The page that shows an error; where somebody has to sign in, the way there."""
    kept = {name: value for name, value in problem.headers.items() if name not in ("content-type", "content-length")}
    if problem.status_code != HTTPStatus.UNAUTHORIZED:
        status, body = HTTPStatus(problem.status_code), json.loads(bytes(problem.body))
        return page("error.html", scope, status=status, headers=kept, problem=body)
    kept.pop("www-authenticate", None)
    here, there, is_read = path_of(scope), f"{root_of(scope)}{SIGN_IN}", scope["method"] == "GET"
    if is_read:
        query = scope["query_string"].decode("latin-1")
        there += "?" + urlencode({"next": f"{here}?{query}" if query else here})
    if "hx-request" not in Headers(scope=scope):
        return RedirectResponse(there, status_code=HTTPStatus.SEE_OTHER, headers=kept)
    # one that was posted is of a form, whose fields would be lost
    return Response(status_code=problem.status_code, headers=kept | ({"HX-Redirect": there} if is_read else {}))


def cookie(value: str, scope: Scope, *, seconds: int = SESSION_SECONDS) -> str:
    """The header `Set-Cookie` of a session: for pages alone, out of reach of scripts.

    Other sites can lead here with it, and nothing else: where none was sent, the page would begin a new session.
    """
    secure = "; Secure" if scope.get("scheme") == "https" else ""
    path = f"{root_of(scope)}/ui"
    return f"{_name_of(scope)}={value}; Max-Age={seconds}; Path={path}; HttpOnly; SameSite=Lax{secure}"


def _name_of(scope: Scope) -> str:
    """Of the cookie: a browser has one for all ports of a host, and another port may be another service."""
    port = _PORT.search(Headers(scope=scope).get("host", ""))
    return COOKIE if port is None else f"{COOKIE}_{port[1]}"


async def form(request: Request) -> Mapping[str, str]:
    """A dependency of all pages: the fields of the form; none where the request can change nothing.

    Raises `HTTPException`, also without the token of the session, and as `parse` does.
    """
    if request.method in READING:
        return {}
    found = parse(request.headers.get("content-type", ""), await request.body())
    session, given = session_of(request.scope), found.get(CSRF_FIELD, "")
    if session is None or not hmac.compare_digest(given.encode(), session.csrf_token.encode()):
        raise HTTPException(
            HTTPStatus.FORBIDDEN,
            "this form does not belong to your session, which may have ended; go back, load the page again and repeat "
            "what you did",
        )
    return found


FormDep = Annotated[Mapping[str, str], Depends(form)]


def parse(content_type: str, body: bytes) -> dict[str, str]:
    """The fields of a form; of a repeated one, the last. Raises `HTTPException` and `MalformedBody`."""
    if content_type.partition(";")[0].strip().lower() != _FORM:
        raise HTTPException(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"expected content-type {_FORM}")
    try:
        return dict(
            parse_qsl(body.decode("utf-8"), keep_blank_values=True, max_num_fields=_MOST_FIELDS, errors="strict")
        )
    except ValueError as error:  # not UTF-8, or too many
        raise MalformedBody(f"the form cannot be read: {error}") from None


def ticked(form: Mapping[str, str], name: str) -> list[str]:
    """The boxes of a group that are ticked: fields `name-VALUE`."""
    return [field.removeprefix(f"{name}-") for field in form if field.startswith(f"{name}-")]


def key_of(form: Mapping[str, str]) -> str | None:
    """The idempotency key of a form, which every rendering gives another `key`.

    Sent twice it has the same key; sent again with other contents, after going back to it, it is another request.
    """
    if not form.get("key"):
        return None
    contents = sorted((name, value) for name, value in form.items() if name != CSRF_FIELD)
    return hashlib.sha256(repr(contents).encode(errors="replace")).hexdigest()
