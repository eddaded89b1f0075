"""The connection of a command to the service."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from api.cli.exit_codes import ExitCode, exit_code_of_status
from api.cli.failure import Failure
from api.client.client import Client
from api.client.connection import KEY_VARIABLE
from api.client.errors import Refused, ServiceError

Url = Annotated[str, typer.Option("--url", envvar="REPLACEME_URL", help="URL of the service.")]
ApiKeyOption = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        envvar=KEY_VARIABLE,
        show_envvar=True,
        help="API key. Default: for a service on this machine, the one in the data directory. Prefer the variable: "
        "others on this machine see arguments.",
    ),
]
JobId = Annotated[str, typer.Argument(metavar="ID", help="ID of the job.")]


@contextmanager
def connect(url: str, *, api_key: str | None = None, as_json: bool) -> Iterator[Client]:
    """A client whose errors end the command with their message and exit code."""
    try:
        client = Client(url, api_key=api_key)
    except ValueError as error:  # before any request: the key cannot be sent
        raise Failure(str(error), ExitCode.BAD_INPUT, as_json=as_json) from error
    except ServiceError as error:
        raise Failure(str(error), ExitCode.SERVICE_UNREACHABLE, code="service_unreachable", as_json=as_json) from error
    try:
        with client:
            yield client
    except Refused as error:
        problem = error.problem
        raise Failure(
            str(error),
            exit_code_of_status(problem.status),
            code=problem.code,
            errors=tuple(each.model_dump(mode="json") for each in problem.errors),
            as_json=as_json,
        ) from error
    except ServiceError as error:
        raise Failure(str(error), ExitCode.SERVICE_UNREACHABLE, code="service_unreachable", as_json=as_json) from error
