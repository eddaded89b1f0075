"""`openapi`: the description of the HTTP API, without a service."""

import json
from pathlib import Path
from typing import Annotated

import typer

from api.cli.exit_codes import ExitCode
from api.cli.failure import Failure, failure_of
from replaceme_core.errors import InvalidInput
from replaceme_core.local.requirements import check_installed


def openapi(
    *,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File to write. Default: standard output.", show_default=False)
    ] = None,
) -> None:
    try:
        check_installed("openapi", "api")
    except InvalidInput as error:
        raise failure_of(error) from error
    from api.main import create_app

    text = json.dumps(create_app().openapi(), indent=2, ensure_ascii=False)
    if out is None:
        typer.echo(text)
        return
    try:
        out.write_text(f"{text}\n", encoding="utf-8")
    except OSError as error:
        raise Failure(f"{out} cannot be written: {error.strerror}", ExitCode.BAD_INPUT) from error
