"""Forms: a route that takes one refuses it without the token that only our own pages have."""

import hashlib
import hmac
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Annotated
from urllib.parse import parse_qsl

from fastapi import Depends, Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.types import Scope as AsgiScope

from api.auth.sessions import session_of
from api.http.problems import MalformedBody, problem_response

CSRF_FAILED = "csrf_failed"
CSRF_FIELD = "csrf_token"
_SCOPE_KEY = "replaceme.form"
_READING = ("GET", "HEAD")
_FORM = "application/x-www-form-urlencoded"
_MOST_FIELDS = 100


class PageRoute(APIRoute):
    """A route of pages. What may change something is a form with the token of the session, else it is a 403."""

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]  # a coroutine function too
        handle = super().get_route_handler()

        async def handle_with_token(request: Request) -> Response:
            if request.method not in _READING:
                form = parse(request.headers.get("content-type", ""), await request.body())
                if not _has_token(form, request.scope):
                    return problem_response(
                        status=HTTPStatus.FORBIDDEN,
                        code=CSRF_FAILED,
                        detail="this form does not belong to your session, which may have ended; go back, load the "
                        "page again and repeat what you did",
                    )
                request.scope[_SCOPE_KEY] = form
            return await handle(request)

        return handle_with_token


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


def _has_token(form: Mapping[str, str], scope: AsgiScope) -> bool:
    session = session_of(scope)
    given = form.get(CSRF_FIELD, "")
    return session is not None and hmac.compare_digest(given.encode(), session.csrf_token.encode())


def key_of(form: Mapping[str, str]) -> str | None:
    """The idempotency key of a form, which every rendering gives another `key`.

    Sent twice it has the same key; sent again with other contents, after going back to it, it is another request.
    """
    if not form.get("key"):
        return None
    contents = sorted((name, value) for name, value in form.items() if name != CSRF_FIELD)
    return hashlib.sha256(repr(contents).encode(errors="replace")).hexdigest()


async def form(request: Request) -> Mapping[str, str]:
    found: Mapping[str, str] = request.scope[_SCOPE_KEY]
    return found


FormDep = Annotated[Mapping[str, str], Depends(form)]
