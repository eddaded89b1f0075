"""How a command ends: the exit codes, the tables that map errors, HTTP statuses and jobs to them, and failures."""

from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import Final

import typer

from api.cli.output.console import print_json, print_note
from replaceme_core import errors
from replaceme_core.errors import InvalidInput, ReplaceMeError
from replaceme_core.local.run import read_settings as settings_of_environment
from replaceme_core.settings import Settings


class ExitCode(IntEnum):
    SUCCEEDED = 0
    INTERNAL_ERROR = 1
    BAD_INPUT = 2
    JOB_FAILED = 3
    GATE_REJECTED = 4
    CANCELLED = 5
    TIMED_OUT = 6
    SERVICE_UNREACHABLE = 7
    NOT_ALLOWED = 8
    DIFFERENT = 9
    INTERRUPTED = 130


_BY_CLASS: Final = MappingProxyType(
    {
        errors.InvalidInput: ExitCode.BAD_INPUT,
        errors.NotFound: ExitCode.BAD_INPUT,
        errors.Conflict: ExitCode.BAD_INPUT,
        errors.AccessDenied: ExitCode.NOT_ALLOWED,
        errors.MissingScope: ExitCode.NOT_ALLOWED,
        errors.TooManyRequests: ExitCode.BAD_INPUT,
        errors.Unavailable: ExitCode.SERVICE_UNREACHABLE,
        errors.OutOfSpace: ExitCode.JOB_FAILED,
        errors.OutOfMemory: ExitCode.JOB_FAILED,
        errors.OutOfTime: ExitCode.JOB_FAILED,
        errors.NumericalFailure: ExitCode.JOB_FAILED,
        errors.VerificationFailed: ExitCode.JOB_FAILED,
        errors.GateRejected: ExitCode.GATE_REJECTED,
        errors.SecretUnreadable: ExitCode.INTERNAL_ERROR,
        errors.Cancelled: ExitCode.CANCELLED,
        errors.WorkerLost: ExitCode.JOB_FAILED,
    }
)
"""A subclass has the exit code of its nearest parent here."""


def _by_code(base: type[errors.ReplaceMeError]) -> dict[str, ExitCode]:
    """Error code to exit code, for all subclasses of `base`."""
    found: dict[str, ExitCode] = {}
    for error in base.__subclasses__():
        exit_code = next((_BY_CLASS[parent] for parent in error.__mro__ if parent in _BY_CLASS), None)
        if exit_code is not None:
            found[error.code] = exit_code
        found |= _by_code(error)
    return found


EXIT_CODES: Final = MappingProxyType(_by_code(errors.ReplaceMeError))
_BY_JOB_STATUS: Final = MappingProxyType({"succeeded": ExitCode.SUCCEEDED, "cancelled": ExitCode.CANCELLED})


def exit_code_of(code: str) -> ExitCode:
    """The exit code for an error code of the core; an unknown one is an internal error."""
    return EXIT_CODES.get(code, ExitCode.INTERNAL_ERROR)


def exit_code_of_status(status: int) -> ExitCode:
    """The exit code for the status of an HTTP response that is not a success."""
    if status in (401, 403):
        return ExitCode.NOT_ALLOWED
    return ExitCode.BAD_INPUT if status < 500 else ExitCode.SERVICE_UNREACHABLE


def exit_code_of_job(status: str, *, code: str | None = None) -> ExitCode:
    """The exit code for the final status of a job; `code` is that of its error."""
    if code == errors.GateRejected.code:
        return ExitCode.GATE_REJECTED
    return _BY_JOB_STATUS.get(status, ExitCode.JOB_FAILED)


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
        return settings_of_environment(**given)
    except InvalidInput as error:
        raise failure_of(error) from error
