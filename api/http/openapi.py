"""Additions to the framework's description at /openapi.json: errors, scopes, links, examples of what is in paths."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute

from api.http.openapi_errors import error_responses, problem_components
from api.http.openapi_links import links_of

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
