"""Changes to the framework's description at /openapi.json: the media type of errors, and the scopes of operations."""

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI

from api.http.problems import PROBLEM_JSON
from api.schemas.problems import ProblemBody

PROBLEMS: dict[int | str, dict[str, Any]] = {
    HTTPStatus.UNPROCESSABLE_ENTITY.value: {"model": ProblemBody, "description": "The request cannot be carried out"},
    "default": {"model": ProblemBody, "description": "Any other error"},
}


_SECURITY = "key"
_SCHEME = {
    "type": "http",
    "scheme": "bearer",
    "bearerFormat": "rmk_ and 49 letters and digits",
    "description": "An API key. Where none has been created, requests from the same machine need none.",
}


def install(app: FastAPI, *, scope_of: Callable[[str, str], str | None]) -> None:
    """Describe every error response of `app` with the media type of problems, and the scope that operations need."""
    described = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = described()
            document.setdefault("components", {})["securitySchemes"] = {_SECURITY: _SCHEME}
            for path, operations in document["paths"].items():
                for method, operation in operations.items():
                    scope = scope_of(method.upper(), path)
                    # the second choice: no key
                    operation["security"] = [] if scope is None else [{_SECURITY: [scope]}, {}]
                    for status, response in operation["responses"].items():
                        content = response.get("content", {})
                        if (status == "default" or int(status) >= 400) and "application/json" in content:
                            content[PROBLEM_JSON] = content.pop("application/json")
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
