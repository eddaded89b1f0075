"""Errors as responses: one table from core error class to status and title, one shape for all.

Every error is `application/problem+json` (RFC 9457), including the framework's own. Clients branch on `code`; `detail`
is a sentence for people.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute, Match
from starlette.types import Receive, Scope, Send

from api.request_bodies import schema_of
from replaceme_core import errors as core
from replaceme_core.validation import MOST_PROBLEMS, Problem, parameter_problem, problem, problems
from replaceme_core.wording import shorten

PROBLEM_JSON = "application/problem+json"
AS_PAGE = "replaceme.as_page"
"""In the scope of a request for a page: what makes the page of a problem."""
_HIDDEN = "***"
_RETRY_SECONDS = 5
_CLIENT_CLOSED_REQUEST = 499
"""No registered status; proxies use it in their logs."""
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class HttpError:
    """Status and title of a class of errors."""

    status: HTTPStatus
    title: str


# The first class in an error's method resolution order that has a row here decides.
HTTP_ERRORS: dict[type[core.ReplaceMeError], HttpError] = {
    core.InvalidInput: HttpError(status=HTTPStatus.UNPROCESSABLE_ENTITY, title="The request cannot be carried out"),
    core.NotFound: HttpError(status=HTTPStatus.NOT_FOUND, title="Not found"),
    core.Conflict: HttpError(status=HTTPStatus.CONFLICT, title="Conflict with the current state"),
    core.TooManyRequests: HttpError(status=HTTPStatus.TOO_MANY_REQUESTS, title=HTTPStatus.TOO_MANY_REQUESTS.phrase),
    core.TooManyJobs: HttpError(status=HTTPStatus.TOO_MANY_REQUESTS, title="Too many unfinished jobs"),
    core.MissingScope: HttpError(status=HTTPStatus.FORBIDDEN, title=HTTPStatus.FORBIDDEN.phrase),
    core.AccessDenied: HttpError(status=HTTPStatus.FORBIDDEN, title="The Hub denies access"),
    core.Unavailable: HttpError(status=HTTPStatus.SERVICE_UNAVAILABLE, title="Try again later"),
    core.OutOfSpace: HttpError(status=HTTPStatus.INSUFFICIENT_STORAGE, title="No space left"),
    core.ReplaceMeError: HttpError(status=HTTPStatus.INTERNAL_SERVER_ERROR, title="Internal error"),
}

CODES = {
    HTTPStatus.BAD_REQUEST: "bad_request",
    HTTPStatus.UNAUTHORIZED: "unauthenticated",
    HTTPStatus.FORBIDDEN: "csrf_failed",  # the other reasons are errors of the core, or name their code
    HTTPStatus.NOT_FOUND: "not_found",
    HTTPStatus.METHOD_NOT_ALLOWED: "method_not_allowed",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "content_too_large",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "unsupported_media_type",
    HTTPStatus.MISDIRECTED_REQUEST: "misdirected_request",
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: "headers_too_large",
}
"""Of errors that only HTTP has, the framework's and ours; `http_error` for every other status."""


class MalformedBody(HTTPException):
    """The body is not one unambiguous JSON object."""

    def __init__(self, message: str, *, field: str = "body", value: object = None) -> None:
        super().__init__(HTTPStatus.UNPROCESSABLE_ENTITY, message)
        self.problem = problem(field, value, message)


class MethodRefused(HTTPException):
    """405 at a path that a route with a parameter would take otherwise; `allowed` are its methods."""

    def __init__(self, *allowed: str) -> None:
        super().__init__(HTTPStatus.METHOD_NOT_ALLOWED)
        self.allowed = allowed


def http_error_of(error: core.ReplaceMeError) -> HttpError:
    """The row of `HTTP_ERRORS` for this error."""
    return next(HTTP_ERRORS[kind] for kind in type(error).__mro__ if kind in HTTP_ERRORS)


class ProblemResponse(JSONResponse):
    """An error; in a browser a page that shows it."""

    media_type = PROBLEM_JSON

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        as_page: Callable[[Response, Scope], Response] | None = scope.get(AS_PAGE)
        if as_page is None:
            await super().__call__(scope, receive, send)
        else:
            await as_page(self, scope)(scope, receive, send)


def problem_response(
    *,
    status: HTTPStatus,
    detail: str,
    code: str | None = None,
    title: str | None = None,
    errors: Sequence[Problem] | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """One error as a response; `code` and `title` default to what `CODES` and the standard say of `status`."""
    code = code or CODES.get(status, "http_error")
    body: dict[str, object] = {
        "type": f"urn:replaceme:problem:{code}",
        "title": title or status.phrase,
        "status": status.value,
        "detail": shorten(detail),
        "code": code,
    }
    if errors is not None:
        body["errors"] = list(errors)
    return ProblemResponse(body, status_code=status, headers=headers)


def problem_of(
    error: core.ReplaceMeError, *, errors: Sequence[Problem] | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """An error of the core as a response, with a `Retry-After` where another try may help."""
    row, more = http_error_of(error), dict(headers or {})
    if isinstance(error, core.InvalidInput) and errors is None:
        errors = [problem(error.field or "body", error.value, error.message)]
    if isinstance(error, core.TooManyRequests | core.Unavailable):
        seconds = _RETRY_SECONDS if error.retry_after is None else error.retry_after
        more.setdefault("Retry-After", str(max(math.ceil(seconds), 1)))
    return problem_response(
        status=row.status, title=row.title, code=error.code, detail=error.message, errors=errors, headers=more
    )


def install(app: FastAPI) -> None:
    """Make every error response of `app` a problem, but for that to an exception that nobody expects (`RequestLog`)."""
    app.add_exception_handler(core.ReplaceMeError, _on_core_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(ClientDisconnect, _on_hang_up)


async def _on_core_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, core.ReplaceMeError)
    if http_error_of(error).status == HTTPStatus.INTERNAL_SERVER_ERROR:
        _log.error("internal error", code=error.code, error=error.explained)
        return internal_error()
    logged = isinstance(error, core.DatabaseUnreachable | core.DatabaseOutdated)  # by the session of the database
    if error.reason is not None and not logged:
        _log.warning("request refused", code=error.code, error=error.message, reason=error.reason)
    return problem_of(error)


async def _on_invalid_request(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    schema = _body_schema(request)
    found: list[Problem] = []
    for raw in error.errors()[:MOST_PROBLEMS]:
        source, *location = raw["loc"]
        inner = {**raw, "loc": tuple(location)}
        if source == "body":
            sent = _without_values(error.body) if _has_secrets(schema) else error.body
            found += problems([inner], sent=sent, schema=schema)
        else:
            found.append(parameter_problem(inner, default=str(source)))
    count = len(error.errors())
    detail = "; ".join(f"{item['field']}: {item['message']}" for item in found[:3])
    if count > 3:
        detail = f"{shorten(detail, 400)}; {count} problems in total"
    return problem_of(core.InvalidInput(detail), errors=found)


def _body_schema(request: Request) -> Mapping[str, object]:
    """The JSON schema of the body that the route of a request takes."""
    field = getattr(request.scope.get("route"), "body_field", None)
    return {} if field is None else schema_of(field.field_info.annotation)


def _without_values(body: object) -> object:
    """The names of a body: no answer repeats a secret, whichever field it was put into."""
    return dict.fromkeys(body, _HIDDEN) if isinstance(body, dict) else _HIDDEN


async def _on_hang_up(_: Request, __: Exception) -> Response:
    """No error: the client has gone before its request was complete. Nobody gets this; the log has the status."""
    return Response(status_code=_CLIENT_CLOSED_REQUEST)


async def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if isinstance(error, MalformedBody):
        found = error.problem
        if _has_secrets(_body_schema(request)):
            found = {**found, "value": _HIDDEN}
        return problem_of(core.InvalidInput(error.detail), errors=[found])
    status = HTTPStatus(error.status_code)
    headers = dict(error.headers or {})
    detail = error.detail
    path = request.scope["path"]  # not request.url: that parses the Host header, which may be invalid
    match status:
        case HTTPStatus.NOT_FOUND:
            detail = f"there is nothing at {path}"
        case HTTPStatus.METHOD_NOT_ALLOWED:
            allowed = list(error.allowed) if isinstance(error, MethodRefused) else _allowed_methods(request)
            if "GET" in allowed:
                allowed.insert(1, "HEAD")
            headers["Allow"] = ", ".join(allowed) or headers.get("Allow", "")  # a mount of files is no route
            detail = f"{request.method} is not allowed at {path}; allowed: {headers['Allow']}"
    return problem_response(status=status, detail=detail, headers=headers)


def _allowed_methods(request: Request) -> list[str]:
    """The methods of all routes with this path; the framework reports those of the first one only."""
    routes: Sequence[BaseRoute] = request.app.router.routes
    return [
        method
        for method in _METHODS
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in routes)
    ]


def internal_error() -> JSONResponse:
    """500 without what has happened, which only the log may say."""
    return problem_response(
        status=HTTPStatus.INTERNAL_SERVER_ERROR,
        code=core.ReplaceMeError.code,
        detail="internal error; see the log of the service",
    )


def _has_secrets(schema: Mapping[str, object]) -> bool:
    """Whether the body has a field that may be sent but is never shown."""
    properties = schema.get("properties")
    fields = properties.values() if isinstance(properties, Mapping) else ()
    return any(isinstance(field, Mapping) and field.get("writeOnly") is True for field in fields)
