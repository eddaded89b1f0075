"""Additions to the framework's description at /openapi.json: errors, scopes, links, examples of what is in paths."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute

from api.bodies import ProblemBody
from api.http.problems import PROBLEM_JSON

_SECURITY = "key"
_SCHEME = {
    "type": "http",
    "scheme": "bearer",
    "bearerFormat": "rmk_ and 49 letters and digits",
    "description": "An API key. Where none has been created, requests from the same machine need none.",
}
_JOB_ID, _WEBHOOK_ID = "8e03978e-40d5-43dd-bc93-6894a57f9324", "9a0e6d1c-5b0f-4f6e-9a64-0d3f0c1b7d12"
_IN_PATHS: Mapping[str, str] = {
    "job_id": _JOB_ID,
    "webhook_id": _WEBHOOK_ID,
    "delivery_id": f"evt_{_JOB_ID}-14",
    "key_id": "5c1e7a64-7c4c-4b0a-8f57-3a3a0b0f9f3e",
    "name": "my-hub-token",
    "owner": "team-a",
}
"""An example of each parameter of a path."""


def operation_id(route: APIRoute) -> str:
    """The name of the route's function, which stays while paths may get more parameters."""
    return route.name


def install(app: FastAPI, *, scopes_of: Callable[[str, str], Sequence[str]]) -> None:
    """Complete the description of `app`, with the scopes that operations need."""
    described = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = described()
            components = document.setdefault("components", {})
            components["securitySchemes"] = {_SECURITY: _SCHEME}
            components["responses"], schemas = problem_components()
            components.setdefault("schemas", {}).update(schemas)
            for unused in ("HTTPValidationError", "ValidationError"):
                components["schemas"].pop(unused, None)
            for path, operations in document["paths"].items():
                for method, operation in operations.items():
                    scopes = scopes_of(method.upper(), path)
                    # the second choice: no key
                    operation["security"] = [{_SECURITY: list(scopes)}, {}] if scopes else []
                    _complete(operation, method.upper(), path, needs_key=bool(scopes))
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _complete(operation: dict[str, Any], method: str, path: str, *, needs_key: bool) -> None:
    for parameter in operation.get("parameters", ()):
        if parameter["in"] == "path":
            parameter["example"] = _IN_PATHS[parameter["name"]]
    responses: dict[str, Any] = operation["responses"]
    responses |= error_responses(method, path, needs_key=needs_key, has_body="requestBody" in operation)
    for status, links in links_of(operation["operationId"]).items():
        responses[status]["links"] = links


# Which errors an operation may answer with, and an example of each

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


# Where a client may go from a response that names something new

_OF_JOB = {
    "job": ("get_job", "The job."),
    "cancel": ("cancel_job", "Cancel it."),
    "events": ("list_events", "Its history, and what happens from now on."),
    "logs": ("list_log_lines", "The last lines of its runners."),
    "metrics": ("list_metrics", "What it measures."),
    "report": ("get_report", "What was done, once it has succeeded."),
    "retry": ("retry_job", "Make it again, once it has ended."),
    "delete": ("delete_job", "Delete it, once it has ended."),
}
_OF_WEBHOOK = {
    "webhook": ("get_webhook", "The webhook."),
    "change": ("change_webhook", "Change it."),
    "rotate": ("rotate_secret", "Make a new secret."),
    "deliveries": ("list_deliveries", "The messages to it."),
    "delete": ("delete_webhook", "Delete it."),
}
_OF_KEY = {
    "key": ("get_key", "The key."),
    "rotate": ("rotate_key", "Replace it."),
    "revoke": ("revoke_key", "Revoke it."),
}
_NAMES = {"name": "$response.body#/name"}
_LINKS: Mapping[str, tuple[str, str, Mapping[str, tuple[str, str]]]] = {
    "submit_job": ("202", "job_id", _OF_JOB),
    "retry_job": ("202", "job_id", _OF_JOB),
    "create_webhook": ("201", "webhook_id", _OF_WEBHOOK),
    "put_credential": ("200", "name", {"delete": ("delete_credential", "Delete it.")}),
    "create_key": ("201", "key_id", _OF_KEY),
}
"""Operation to the status of its response, the parameter that is its `id` or `name`, and what this leads to."""


def links_of(operation_id: str) -> dict[str, dict[str, Any]]:
    """Status of a response to its links."""
    if operation_id not in _LINKS:
        return {}
    status, parameter, targets = _LINKS[operation_id]
    links = {
        name: {
            "operationId": target,
            "parameters": {parameter: _NAMES.get(parameter, "$response.body#/id")},
            "description": text,
        }
        for name, (target, text) in targets.items()
    }
    return {status: links}
