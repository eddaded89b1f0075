"""`openapi`: the description of the HTTP API, without a service."""

import json
from pathlib import Path
from typing import Annotated

import typer

from api.cli.exit_codes import ExitCode
from api.cli.failure import Failure


def openapi(
    *,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File to write. Default: standard output.", show_default=False)
    ] = None,
) -> None:
    """Print the OpenAPI 3.1 document of this version as JSON."""
    try:
        # imported here: clients need no web framework
        from api.main import create_app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("api", "replaceme_core"):
            raise
        message = f"{error.name} is missing; install it with: pip install 'replaceme[api,cli]'"
        raise Failure(message, ExitCode.BAD_INPUT) from error
    text = json.dumps(create_app().openapi(), indent=2, ensure_ascii=False)
    if out is None:
        typer.echo(text)
        return
    try:
        out.write_text(f"{text}\n", encoding="utf-8")
    except OSError as error:
        raise Failure(f"{out} cannot be written: {error.strerror}", ExitCode.BAD_INPUT) from error
