"""Which errors an operation may answer with, and an example of each, for /openapi.json."""

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from api.http.problems import PROBLEM_JSON
from api.schemas.problems import ProblemBody

_SCHEMAS = "#/components/schemas/"


@dataclass(frozen=True, kw_only=True)
class _Error:
    """One error with an example. `title` is by default the reason phrase; `headers` are those that it always has."""

    status: HTTPStatus
    code: str
    detail: str
    title: str = ""
    errors: tuple[Mapping[str, object], ...] = ()
    headers: tuple[str, ...] = ()


_INVALID = ({"field": "ratio", "value": 1.5, "message": "expected a number greater than 0 and less than 1, got 1.5"},)
_COMPONENTS: Mapping[str, _Error] = {
    "BadRequest": _Error(
        status=HTTPStatus.BAD_REQUEST,
        code="bad_request",
        detail="expected one Host header with the name of this service",
    ),
    "Unauthenticated": _Error(
        status=HTTPStatus.UNAUTHORIZED,
        code="unauthenticated",
        detail="this key is not known here, is revoked, or has expired",
        headers=("WWW-Authenticate",),
    ),
    "Forbidden": _Error(
        status=HTTPStatus.FORBIDDEN,
        code="missing_scope",
        detail="the key does not have the scope jobs:write, which this request needs",
    ),
    "JobNotFound": _Error(
        status=HTTPStatus.NOT_FOUND, title="Not found", code="job_not_found", detail="there is no job 'x'"
    ),
    "KeyNotFound": _Error(
        status=HTTPStatus.NOT_FOUND, title="Not found", code="key_not_found", detail="there is no key 'x'"
    ),
    "CredentialNotFound": _Error(
        status=HTTPStatus.NOT_FOUND, title="Not found", code="credential_not_found", detail="there is no credential 'x'"
    ),
    "NotFound": _Error(
        status=HTTPStatus.NOT_FOUND, title="Not found", code="not_found", detail="there is no webhook 'x'"
    ),
    "Conflict": _Error(
        status=HTTPStatus.CONFLICT,
        title="Conflict with the current state",
        code="stale_transition",
        detail="job 8e03978e-40d5-43dd-bc93-6894a57f9324 is succeeded",
    ),
    "ContentTooLarge": _Error(
        status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        code="content_too_large",
        detail="the body is larger than 65536 bytes",
    ),
    "UnsupportedMediaType": _Error(
        status=HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        code="unsupported_media_type",
        detail="expected content-type application/json, got text/plain",
    ),
    "Misdirected": _Error(
        status=HTTPStatus.MISDIRECTED_REQUEST,
        code="misdirected_request",
        detail="this service does not answer to the host example.com",
    ),
    "Invalid": _Error(
        status=HTTPStatus.UNPROCESSABLE_ENTITY,
        title="The request cannot be carried out",
        code="invalid_input",
        detail="ratio: expected a number greater than 0 and less than 1, got 1.5",
        errors=_INVALID,
    ),
    "TooMany": _Error(
        status=HTTPStatus.TOO_MANY_REQUESTS,
        code="too_many_requests",
        detail="more than 600 requests in a minute; try again in 12 seconds",
        headers=("Retry-After",),
    ),
    "Unavailable": _Error(
        status=HTTPStatus.SERVICE_UNAVAILABLE,
        title="Try again later",
        code="database_unreachable",
        detail="the database does not answer",
        headers=("Retry-After",),
    ),
}
_HEADERS = {
    "Retry-After": {"description": "Seconds after which to try again.", "schema": {"type": "integer"}},
    "WWW-Authenticate": {"description": "`Bearer`, and what is wrong.", "schema": {"type": "string"}},
}
_MISSING = (("{job_id}", "JobNotFound"), ("{key_id}", "KeyNotFound"), ("{webhook_id}", "NotFound"))
_CONFLICTS = frozenset(
    {
        ("POST", "/jobs/{job_id}/cancel"),
        ("POST", "/jobs/{job_id}/retry"),
        ("DELETE", "/jobs/{job_id}"),
        ("POST", "/keys/{key_id}/rotate"),
        ("POST", "/webhooks"),
        ("POST", "/webhooks/{webhook_id}/rotate"),
        ("POST", "/webhooks/{webhook_id}/deliveries/{delivery_id}/redeliver"),
    }
)


def problem_components() -> tuple[dict[str, Any], dict[str, Any]]:
    """The responses that the operations refer to, and the schemas that these refer to."""
    schema = ProblemBody.model_json_schema(ref_template=f"{_SCHEMAS}{{model}}")
    schemas = {**schema.pop("$defs", {}), ProblemBody.__name__: schema}
    return {name: _response(error) for name, error in _COMPONENTS.items()}, schemas


def error_responses(method: str, path: str, *, needs_key: bool, has_body: bool) -> dict[str, Any]:
    """Status to response, for all errors of an operation. Internal errors are mistakes, so they are not among them."""
    names = ["BadRequest", "Misdirected", "Invalid"]
    if needs_key:
        names += ["Unauthenticated", "Forbidden", "Unavailable"]
    elif path == "/ready":
        names.append("Unavailable")
    if needs_key and not path.endswith("/cancel"):
        names.append("TooMany")
    if has_body:
        names += ["ContentTooLarge", "UnsupportedMediaType"]
    names += [name for parameter, name in _MISSING if parameter in path]
    if path.startswith("/credentials/") and method == "DELETE":
        names.append("CredentialNotFound")
    if (method, path) in _CONFLICTS:
        names.append("Conflict")
    found = {_COMPONENTS[name].status.value: {"$ref": f"#/components/responses/{name}"} for name in names}
    return {str(status): found[status] for status in sorted(found)}


def _response(error: _Error) -> dict[str, Any]:
    example: dict[str, object] = {
        "type": f"urn:replaceme:problem:{error.code}",
        "title": error.title or error.status.phrase,
        "status": error.status.value,
        "detail": error.detail,
        "code": error.code,
    }
    if error.errors:
        example["errors"] = list(error.errors)
    found: dict[str, Any] = {
        "description": error.title or error.status.phrase,
        "content": {PROBLEM_JSON: {"schema": {"$ref": f"{_SCHEMAS}{ProblemBody.__name__}"}, "example": example}},
    }
    if error.headers:
        found["headers"] = {name: _HEADERS[name] for name in error.headers}
    return found
