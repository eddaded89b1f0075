"""Changes to the framework's description at /openapi.json: errors are `application/problem+json`."""

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI

from api.http.problems import PROBLEM_JSON
from api.schemas.problems import ProblemBody

PROBLEMS: dict[int | str, dict[str, Any]] = {
    HTTPStatus.UNPROCESSABLE_ENTITY.value: {"model": ProblemBody, "description": "The request cannot be carried out"},
    "default": {"model": ProblemBody, "description": "Any other error"},
}


def install(app: FastAPI) -> None:
    """Describe every error response of `app` with the media type of problems."""
    described = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            for path in described()["paths"].values():
                for operation in path.values():
                    for status, response in operation["responses"].items():
                        content = response.get("content", {})
                        if (status == "default" or int(status) >= 400) and "application/json" in content:
                            content[PROBLEM_JSON] = content.pop("application/json")
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
