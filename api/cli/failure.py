"""Errors that end a command: one sentence, an exit code and, with `--json`, an object."""

from collections.abc import Mapping

import typer

from api.cli.exit_codes import ExitCode, exit_code_of
from api.cli.output.console import print_json, print_note
from replaceme_core.errors import InvalidInput, ReplaceMeError
from replaceme_core.local import requirements
from replaceme_core.settings import Settings


class Failure(typer.Exit):
    """Ends a command. Prints the message on standard error and, with `as_json`, an object on standard output."""

    def __init__(
        self,
        message: str,
        exit_code: ExitCode,
        *,
        code: str = "",
        field: str | None = None,
        errors: tuple[Mapping[str, object], ...] = (),
        as_json: bool = False,
    ) -> None:
        super().__init__(int(exit_code))
        lines = [
            f"{error['field']}: {error['message']}" if error.get("field") else error["message"] for error in errors
        ]
        if len(lines) == 1:  # the message of the service repeats what is in them
            print_note(f"error: {lines[0]}")
        else:
            print_note(f"error: {len(lines)} fields are wrong" if lines else f"error: {message}")
            for line in lines:
                print_note(f"  {line}")
        if as_json:
            print_json({"error": {"code": code, "message": message, "field": field, "errors": list(errors)}})


def failure_of(error: ReplaceMeError, *, as_json: bool = False) -> Failure:
    """The failure for an error of the core. Its notes, the last lines of a runner's log, are printed before it."""
    for line in getattr(error, "__notes__", ()):
        print_note(line)
    field = error.field if isinstance(error, InvalidInput) else None
    return Failure(error.explained, exit_code_of(error.code), code=error.code, field=field, as_json=as_json)


def read_settings(**given: object) -> Settings:
    """The settings from the environment, overridden by those `given`. Raises `Failure` that names an invalid one."""
    try:
        return requirements.read_settings(**given)
    except InvalidInput as error:
        raise failure_of(error) from error
