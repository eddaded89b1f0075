"""What a request may be: its body, its query parameters, and the headers that say what a client prefers.

Bodies are read strictly: size, content type, and unambiguous JSON of bounded depth and strings.
"""

import json
import re
import sys
from collections.abc import Awaitable, Callable, Iterator
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import Header, Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.problems import MalformedBody, problem_response
from api.request_bodies import MOST_BYTES
from replaceme_core.errors import InvalidInput

MOST_DEPTH = 16  # objects and lists within each other; ours have five
_MOST_EXACT = 2**53
MOST_CHARACTERS = 8 * 1024  # of one string
LONGEST_WAIT_SECONDS = 60
_WAIT = re.compile(r'(?:^|[,;])\s*wait\s*=\s*"?(\d{1,9})"?\s*(?=[,;]|$)', re.IGNORECASE)
_KEY_HEADER = "Idempotency-Key"


# Bodies


class BodyLimit:
    """ASGI middleware: refuses bodies of more than `MOST_BYTES`, with or without a `Content-Length`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"")
        if declared.isdigit() and int(declared[:20]) > MOST_BYTES:
            # the body stays unread, so the connection cannot be reused
            response = problem_response(
                status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail=_TOO_LARGE, headers={"Connection": "close"}
            )
            await response(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > MOST_BYTES:
                raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, _TOO_LARGE, headers={"Connection": "close"})
            return message

        await self._app(scope, counted, send)


_TOO_LARGE = f"the body is larger than {MOST_BYTES} bytes"


class _StrictRequest(Request):
    async def json(self) -> object:
        return parse(await self.body())


class StrictRoute(APIRoute):
    """A route whose body is JSON, has a JSON content type, and is read by `parse`."""

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]  # a coroutine function too
        handle = super().get_route_handler()

        async def handle_strictly(request: Request) -> Response:
            if self.body_field is not None:
                request = _StrictRequest(request.scope, request.receive)
                if await request.body():
                    _check_content_type(request)
                elif self.body_field.field_info.is_required():
                    raise MalformedBody("the body is empty; expected a JSON object")
            return await handle(request)

        return handle_strictly


def _check_content_type(request: Request) -> None:
    essence = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    kind, _, subtype = essence.partition("/")
    if kind != "application" or not (subtype == "json" or subtype.endswith("+json")):
        raise HTTPException(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"expected content-type application/json, got {essence[:100] or 'none'}"
        )
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise HTTPException(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"expected no content-encoding, got {encoding[:100]}")


def parse(body: bytes) -> object:
    """The JSON object in `body`. NaN and infinities are accepted here, so that validation can name their field.

    Raises `MalformedBody`, also for a duplicate name: which of its values is meant is unknown.
    """
    try:
        value: Any = json.loads(body.decode("utf-8"), object_pairs_hook=_object, parse_float=number)
    except UnicodeDecodeError as error:
        raise MalformedBody(f"the body is not UTF-8: byte {error.start} cannot be read") from None
    except json.JSONDecodeError as error:
        near = error.doc[max(error.pos - 20, 0) : error.pos + 20]
        raise MalformedBody(
            f"the body is not valid JSON: {error.msg}, line {error.lineno} column {error.colno}", value=near
        ) from None
    except RecursionError:
        raise MalformedBody(_TOO_DEEP) from None
    except ValueError:
        most = sys.get_int_max_str_digits()
        raise MalformedBody(f"the body contains a whole number of more than {most:,} digits") from None
    if not isinstance(value, dict):
        raise MalformedBody("expected a JSON object", value=value)
    _check_bounds(value)
    return value


def _check_bounds(body: dict[str, object]) -> None:
    """Raises `MalformedBody` for what is nested too deeply, and for a name or a value that is too long."""
    level: list[object] = [body]
    depth = 0
    while level:
        depth += 1
        below: list[object] = []
        for value in level:
            if isinstance(value, dict):
                below += [*value, *value.values()]
            elif isinstance(value, list):
                below += value
            elif isinstance(value, str) and len(value) > MOST_CHARACTERS:
                raise MalformedBody(_TOO_LONG, value=value)
            if depth > MOST_DEPTH and isinstance(value, dict | list):
                raise MalformedBody(_TOO_DEEP)
        level = below


_TOO_DEEP = f"the body is nested too deeply; expected at most {MOST_DEPTH} levels"
_TOO_LONG = f"a string in the body is too long; expected at most {MOST_CHARACTERS:,} characters"


def number(text: str) -> float:
    """In JSON `3.0` and `3` are the same number, so what is whole is read as such."""
    value = float(text)
    return int(value) if value.is_integer() and abs(value) < _MOST_EXACT else value


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in pairs:
        if name in found:
            raise MalformedBody("this name appears twice in one object", field=name, value=value)
        if any("\ud800" <= character <= "\udfff" for character in name):
            raise MalformedBody("a name contains half of a surrogate pair", value=name)
        found[name] = value
    return found


# Query parameters and headers


async def refuse_unknown(request: Request) -> None:
    """A dependency of all routes. Raises `InvalidInput` for the first parameter that the route does not know."""
    if not request.scope["query_string"]:
        return
    route: APIRoute = request.scope["route"]
    known = set(_parameters(route.dependant))
    for name, value in request.query_params.multi_items():
        if name not in known:
            names = ", ".join(sorted(known))
            right = f"the known ones are {names}" if known else "there are none at this path"
            raise InvalidInput(f"unknown parameter; {right}", field=name, value=value)


def _parameters(dependant: Dependant) -> Iterator[str]:
    """The names of all query parameters of a route and of what it depends on."""
    for parameter in dependant.query_params:
        kind = parameter.field_info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from (field.alias or name for name, field in kind.model_fields.items())
        else:
            yield parameter.alias
    for each in dependant.dependencies:
        yield from _parameters(each)


async def idempotency_key(
    request: Request,
    key: Annotated[
        str | None,
        Header(
            alias=_KEY_HEADER,
            min_length=1,
            max_length=255,
            pattern="^[!-~]+$",  # visible ASCII
            description="Identifies this request: repeated with the same key and body, it returns the first job.",
        ),
    ] = None,
) -> str | None:
    if len(request.headers.getlist(_KEY_HEADER)) > 1:
        raise InvalidInput("the header is given more than once", field=_KEY_HEADER)
    return key


def wait_seconds(request: Request) -> int:
    """Seconds, at most `LONGEST_WAIT_SECONDS`; 0 where the client prefers nothing that can be understood."""
    found = _WAIT.search(",".join(request.headers.getlist("prefer")))
    return min(int(found[1]), LONGEST_WAIT_SECONDS) if found else 0
