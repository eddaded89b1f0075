"""The edge where errors become responses: one table from core error class to status and title, one shape for all.

Every error is `application/problem+json` (RFC 9457), the framework's own too. A client branches on `code`; `detail` is
for a person.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match

from api.http.validation import MOST_PROBLEMS, Problem, problem, problems
from replaceme_core import errors as core
from replaceme_core.json_values import shorten
from replaceme_core.spec import CompressionRequest

PROBLEM_JSON = "application/problem+json"
_RETRY_SECONDS = 5
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
_REQUEST_SCHEMA = CompressionRequest.model_json_schema()

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Edge:
    """How a class of errors looks over HTTP."""

    status: HTTPStatus
    title: str


# The nearest class in an error's line of descent counts.
EDGES: dict[type[core.ReplaceMeError], Edge] = {
    core.InvalidInput: Edge(status=HTTPStatus.UNPROCESSABLE_ENTITY, title="The request cannot be carried out"),
    core.NotFound: Edge(status=HTTPStatus.NOT_FOUND, title="There is no such thing"),
    core.Conflict: Edge(status=HTTPStatus.CONFLICT, title="The present state does not allow it"),
    core.AccessDenied: Edge(status=HTTPStatus.FORBIDDEN, title="The Hub refuses access"),
    core.Unavailable: Edge(status=HTTPStatus.SERVICE_UNAVAILABLE, title="Try again later"),
    core.OutOfSpace: Edge(status=HTTPStatus.INSUFFICIENT_STORAGE, title="No space left"),
    core.ReplaceMeError: Edge(status=HTTPStatus.INTERNAL_SERVER_ERROR, title="Internal error"),
}

_FRAMEWORK_CODES = {
    HTTPStatus.BAD_REQUEST: "bad_request",
    HTTPStatus.NOT_FOUND: "not_found",
    HTTPStatus.METHOD_NOT_ALLOWED: "method_not_allowed",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "content_too_large",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "unsupported_media_type",
}


class MalformedBody(HTTPException):
    """The body is not one JSON object that can be read without doubt."""

    def __init__(self, message: str, *, field: str = "body", value: object = None) -> None:
        super().__init__(HTTPStatus.UNPROCESSABLE_ENTITY, message)
        self.problem = problem(field, value, message)


def edge_of(error: core.ReplaceMeError) -> Edge:
    """The row of the table for this error."""
    return next(EDGES[kind] for kind in type(error).__mro__ if kind in EDGES)


def problem_response(
    *,
    status: HTTPStatus,
    code: str,
    detail: str,
    title: str | None = None,
    errors: Sequence[Problem] | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """One error as a response; `title` defaults to HTTP's own phrase."""
    body: dict[str, object] = {
        "type": f"urn:replaceme:problem:{code}",
        "title": title or status.phrase,
        "status": status.value,
        "detail": shorten(detail),
        "code": code,
    }
    if errors is not None:
        body["errors"] = list(errors)
    return JSONResponse(body, status_code=status, headers=headers, media_type=PROBLEM_JSON)


def unavailable_response(*, code: str, detail: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """503 that says when to try again."""
    edge = EDGES[core.Unavailable]
    return problem_response(
        status=edge.status,
        title=edge.title,
        code=code,
        detail=detail,
        headers={"Retry-After": str(_RETRY_SECONDS), **(headers or {})},
    )


def install(app: FastAPI) -> None:
    """Let every error of `app` leave as a problem."""
    app.add_exception_handler(core.ReplaceMeError, _on_core_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(Exception, _on_surprise)


async def _on_core_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, core.ReplaceMeError)
    edge = edge_of(error)
    if edge.status == HTTPStatus.INTERNAL_SERVER_ERROR:
        _log.error("core error at the edge", code=error.code, error=error.message)
        return _internal_error()
    if isinstance(error, core.Unavailable):
        return unavailable_response(code=error.code, detail=error.message)
    errors = None
    if isinstance(error, core.InvalidInput):
        errors = [problem(error.field or "body", error.value, error.message)]
    return problem_response(status=edge.status, title=edge.title, code=error.code, detail=error.message, errors=errors)


async def _on_invalid_request(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    found: list[Problem] = []
    for raw in error.errors()[:MOST_PROBLEMS]:
        place, *location = raw["loc"]
        inner = {**raw, "loc": tuple(location)}
        if place == "body":
            found += problems([inner], sent=error.body, schema=_REQUEST_SCHEMA)
        else:
            field = (raw.get("ctx") or {}).get("field") or ".".join(map(str, location)) or str(place)
            message = str(raw["msg"]).removeprefix("Value error, ").replace("Input should be", "expected", 1)
            value = raw.get("input")
            found.append(problem(field, value.get(field) if isinstance(value, dict) else value, message))
    count = len(error.errors())
    detail = "; ".join(f"{item['field']}: {item['message']}" for item in found[:3])
    if count > 3:
        detail = f"{shorten(detail, 400)}; {count} problems in all"
    return _invalid_input(detail, found)


def _invalid_input(detail: str, errors: Sequence[Problem]) -> JSONResponse:
    edge = EDGES[core.InvalidInput]
    return problem_response(
        status=edge.status, title=edge.title, code=core.InvalidInput.code, detail=detail, errors=errors
    )


async def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if isinstance(error, MalformedBody):
        return _invalid_input(error.detail, [error.problem])
    status = HTTPStatus(error.status_code)
    headers = dict(error.headers or {})
    detail = error.detail
    path = request.scope["path"]  # not request.url: that reads the Host header, which may be nonsense
    match status:
        case HTTPStatus.NOT_FOUND:
            detail = f"there is nothing at {path}"
        case HTTPStatus.METHOD_NOT_ALLOWED:
            allowed = _allowed_methods(request)
            headers["Allow"] = ", ".join(allowed)
            detail = f"{request.method} is not possible at {path}; possible: {', '.join(allowed)}"
    return problem_response(
        status=status, code=_FRAMEWORK_CODES.get(status, "http_error"), detail=detail, headers=headers
    )


def _allowed_methods(request: Request) -> list[str]:
    """The framework names the methods of the first route with this path only."""
    routes: Sequence[BaseRoute] = request.app.router.routes
    scope = {key: request.scope[key] for key in ("type", "path", "root_path", "headers", "app") if key in request.scope}
    return [
        method
        for method in _METHODS
        if any(route.matches({**scope, "method": method})[0] is Match.FULL for route in routes)
    ]


async def _on_surprise(_: Request, __: Exception) -> JSONResponse:
    """A mistake of ours: the log has it in full (the server writes the traceback), the client learns nothing."""
    return _internal_error()


def _internal_error() -> JSONResponse:
    return problem_response(
        status=HTTPStatus.INTERNAL_SERVER_ERROR,
        code=core.ReplaceMeError.code,
        detail="the service made a mistake; its log says more",
    )
