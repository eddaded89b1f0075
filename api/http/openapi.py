"""Additions to the framework's description at /openapi.json: errors, scopes, links, examples of what is in paths."""

import json
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse

from api.http.guard import PROBES, scopes_of
from api.http.problems import PROBLEM_JSON, problem_of, problem_response
from replaceme_core import errors as core
from replaceme_core.ledger.states import TYPE_PREFIX, EventType
from replaceme_core.shapes import Message, Shape
from replaceme_core.validation import Problem

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


def install(app: FastAPI) -> None:
    """Complete the description of `app`, with the scopes that operations need."""
    described = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = described()
            components = document.setdefault("components", {})
            components["securitySchemes"] = {_SECURITY: _SCHEME}
            components["responses"] = {name: _response(error) for name, error in _COMPONENTS.items()}
            components["schemas"] = _schemas_of(ProblemBody) | _schemas_of(Message) | components["schemas"]
            document["webhooks"] = _messages()
            for unused in ("HTTPValidationError", "ValidationError"):
                components["schemas"].pop(unused, None)
            for path, operations in document["paths"].items():
                for method, operation in operations.items():
                    scopes = scopes_of(method.upper(), path)
                    # the second choice: no key
                    operation["security"] = [{_SECURITY: list(scopes)}, {}] if scopes else []
                    operation["responses"] |= error_responses(
                        method.upper(), path, needs_key=bool(scopes), has_body="requestBody" in operation
                    )
                    for parameter in operation.get("parameters", ()):
                        if parameter["in"] == "path":
                            parameter["example"] = _IN_PATHS[parameter["name"]]
            _add_links(document["paths"])
            document["paths"] = dict(sorted(document["paths"].items(), key=lambda one: _place_of(one[0])))
            app.openapi_schema = _with_plain_names(document)
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _place_of(path: str) -> tuple[bool, int]:
    """Jobs come first, what is of all of them before what is of one; others as they are."""
    is_other = not path.startswith("/jobs")
    return is_other, 0 if is_other else path.count("/")


def _with_plain_names(document: dict[str, Any]) -> dict[str, Any]:
    """Schemas named as a person would: `JobPage` for `Page_JobPart_`, `XRequest` and `X` where a type has two."""
    text = json.dumps(document)
    for name in document["components"]["schemas"]:
        plain = re.sub("^Page_(.+?)(Body|Part)?_$", r"\1Page", name)
        plain = plain.replace("-Input", "Request").replace("-Output", "")
        if plain != name:
            assert plain not in document["components"]["schemas"], plain
            text = text.replace(f'"{name}"', f'"{plain}"').replace(f'{_SCHEMAS}{name}"', f'{_SCHEMAS}{plain}"')
    renamed: dict[str, Any] = json.loads(text)
    for name, schema in renamed["components"]["schemas"].items():
        schema["title"] = name  # generators name their classes after it
    return renamed


# Which errors an operation may answer with, and an example of each

_SCHEMAS = "#/components/schemas/"


class ProblemEntry(Shape):
    """One invalid field of a request."""

    field: str
    """Path of the field."""
    value: object
    """What was sent."""
    message: str
    """What is expected."""


class ProblemBody(Shape):
    """An error (RFC 9457)."""

    type: str
    """A URN that ends with `code`."""
    title: str
    """What the status or the kind of error is called."""
    status: int
    """HTTP status."""
    detail: str
    """What was wrong, and what would be right."""
    code: str
    """For programs."""
    errors: list[ProblemEntry] | None = None
    """The invalid fields; present with status 422."""


_WRONG: Problem = {
    "field": "ratio",
    "value": 1.5,
    "message": "expected a number greater than 0 and less than 1, got 1.5",
}
_COMPONENTS: Mapping[str, JSONResponse] = {
    "BadRequest": problem_response(
        status=HTTPStatus.BAD_REQUEST, detail="expected one Host header with the name of this service"
    ),
    "Unauthenticated": problem_response(
        status=HTTPStatus.UNAUTHORIZED,
        detail="this key is not known here, is revoked, or has expired",
        headers={"WWW-Authenticate": ""},
    ),
    "Forbidden": problem_of(core.MissingScope("the key does not have the scope jobs:write, which this request needs")),
    "JobNotFound": problem_of(core.JobNotFound("there is no job 'x'")),
    "KeyNotFound": problem_of(core.KeyNotFound("there is no key 'x'")),
    "CredentialNotFound": problem_of(core.CredentialNotFound("there is no credential 'x'")),
    "NotFound": problem_of(core.NotFound("there is no webhook 'x'")),
    "Conflict": problem_of(core.StaleTransition(f"job {_JOB_ID} is succeeded")),
    "ContentTooLarge": problem_response(
        status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail="the body is larger than 65536 bytes"
    ),
    "UnsupportedMediaType": problem_response(
        status=HTTPStatus.UNSUPPORTED_MEDIA_TYPE, detail="expected content-type application/json, got text/plain"
    ),
    "Misdirected": problem_response(
        status=HTTPStatus.MISDIRECTED_REQUEST, detail="this service does not answer to the host example.com"
    ),
    "Invalid": problem_of(core.InvalidInput(f"ratio: {_WRONG['message']}"), errors=[_WRONG]),
    "TooMany": problem_of(core.TooManyRequests("more than 600 requests in a minute; try again in 12 seconds")),
    "Unavailable": problem_of(core.DatabaseUnreachable("the database does not answer")),
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


def _schemas_of(shape: type[Shape]) -> dict[str, Any]:
    """The schema of `shape`, and those that it refers to."""
    schema = shape.model_json_schema(ref_template=f"{_SCHEMAS}{{model}}")
    return {**schema.pop("$defs", {}), shape.__name__: schema}


def error_responses(method: str, path: str, *, needs_key: bool, has_body: bool) -> dict[str, Any]:
    """Status to response, for all errors of an operation. Internal errors are mistakes, so they are not among them."""
    names = ["BadRequest", "Misdirected", "Invalid"]
    if needs_key:
        names.append("Forbidden")
    if path not in PROBES:  # a key that is sent is looked at, also where none is needed
        names += ["Unauthenticated", "Unavailable"]
    elif path == "/ready":
        names.append("Unavailable")
    if path not in PROBES and not path.endswith("/cancel"):
        names.append("TooMany")
    if has_body:
        names += ["ContentTooLarge", "UnsupportedMediaType"]
    names += [name for parameter, name in _MISSING if parameter in path]
    if path.startswith("/credentials/") and method == "DELETE":
        names.append("CredentialNotFound")
    if (method, path) in _CONFLICTS:
        names.append("Conflict")
    found = {_COMPONENTS[name].status_code: {"$ref": f"#/components/responses/{name}"} for name in names}
    return {str(status): found[status] for status in sorted(found)}


def _response(example: JSONResponse) -> dict[str, Any]:
    body = json.loads(bytes(example.body))
    found: dict[str, Any] = {
        "description": body["title"],
        "content": {PROBLEM_JSON: {"schema": {"$ref": f"{_SCHEMAS}{ProblemBody.__name__}"}, "example": body}},
    }
    headers = {name: row for name, row in _HEADERS.items() if name in example.headers}
    return {**found, "headers": headers} if headers else found


# What webhooks are sent

_SIGNED = {
    "webhook-id": "The same at each try: what has it was seen before.",
    "webhook-timestamp": "When this try began, in seconds since 1970.",
    "webhook-signature": "One signature per live secret, as Standard Webhooks describes them.",
}


def _messages() -> dict[str, Any]:
    """What is sent for each type of event."""
    headers = [
        {"name": name, "in": "header", "required": True, "description": text, "schema": {"type": "string"}}
        for name, text in _SIGNED.items()
    ]
    body = {"application/json": {"schema": {"$ref": f"{_SCHEMAS}{Message.__name__}"}}}
    operation = {
        "parameters": headers,
        "requestBody": {"required": True, "content": body},
        "responses": {"2XX": {"description": "It has arrived. After anything else it is sent again, for three days."}},
    }
    return {
        f"{TYPE_PREFIX}{kind}": {"post": {"summary": f"An event `{kind}` of a job", **operation}} for kind in EventType
    }


# Where a client may go from a response that names something new

_MAKERS: Mapping[str, tuple[str, str, str]] = {
    "submit_job": ("202", "job_id", "id"),
    "retry_job": ("202", "job_id", "id"),
    "create_webhook": ("201", "webhook_id", "id"),
    "put_credential": ("200", "name", "name"),
    "create_key": ("201", "key_id", "id"),
}
"""Operation to the status of its response, and which field of it is which parameter of a path."""


def _add_links(paths: Mapping[str, Mapping[str, Any]]) -> None:
    """Link what makes something to all operations that need nothing but its id, or its name."""
    operations = {one["operationId"]: one for methods in paths.values() for one in methods.values()}
    for maker, (status, parameter, field) in _MAKERS.items():
        operations[maker]["responses"][status]["links"] = {
            name: {
                "operationId": name,
                "parameters": {parameter: f"$response.body#/{field}"},
                "description": target["summary"],
            }
            for name, target in operations.items()
            if _in_path(target) == [parameter]
        }


def _in_path(operation: Mapping[str, Any]) -> list[str]:
    return [parameter["name"] for parameter in operation.get("parameters", ()) if parameter["in"] == "path"]
