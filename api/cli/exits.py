"""The exit codes of the command line, and the one table that maps error codes to them."""

from enum import IntEnum
from types import MappingProxyType
from typing import Final

from replaceme_core import errors


class ExitCode(IntEnum):
    SUCCEEDED = 0
    INTERNAL_ERROR = 1
    BAD_INPUT = 2
    JOB_FAILED = 3
    REJECTED_BY_GATE = 4
    CANCELLED = 5
    TIMED_OUT = 6
    SERVICE_UNREACHABLE = 7
    NOT_ALLOWED = 8
    INTERRUPTED = 130


_BY_CLASS: Final = MappingProxyType(
    {
        errors.InvalidInput: ExitCode.BAD_INPUT,
        errors.NotFound: ExitCode.BAD_INPUT,
        errors.Conflict: ExitCode.BAD_INPUT,
        errors.AccessDenied: ExitCode.NOT_ALLOWED,
        errors.Unavailable: ExitCode.SERVICE_UNREACHABLE,
        errors.OutOfSpace: ExitCode.JOB_FAILED,
        errors.OutOfMemory: ExitCode.JOB_FAILED,
        errors.OutOfTime: ExitCode.JOB_FAILED,
        errors.NumericalFailure: ExitCode.JOB_FAILED,
        errors.VerificationFailed: ExitCode.JOB_FAILED,
        errors.Cancelled: ExitCode.CANCELLED,
        errors.WorkerLost: ExitCode.JOB_FAILED,
    }
)


def _by_code(base: type[errors.ReplaceMeError]) -> dict[str, ExitCode]:
    """The table above spread over all subclasses, by their codes."""
    found: dict[str, ExitCode] = {}
    for error in base.__subclasses__():
        exit_code = next((_BY_CLASS[parent] for parent in error.__mro__ if parent in _BY_CLASS), None)
        if exit_code is not None:
            found[error.code] = exit_code
        found |= _by_code(error)
    return found


EXIT_CODES: Final = MappingProxyType(_by_code(errors.ReplaceMeError))


def exit_code_of(code: str) -> ExitCode:
    """For an error that `compress`, `evaluate` or `serve` met; a code that nobody knows is an internal error."""
    return EXIT_CODES.get(code, ExitCode.INTERNAL_ERROR)


def exit_code_of_status(status: int) -> ExitCode:
    """For an HTTP response that is not a success."""
    if status in (401, 403):
        return ExitCode.NOT_ALLOWED
    return ExitCode.BAD_INPUT if status < 500 else ExitCode.SERVICE_UNREACHABLE


def exit_code_of_job(status: str) -> ExitCode:
    """For a job that came to its end."""
    return {"succeeded": ExitCode.SUCCEEDED, "cancelled": ExitCode.CANCELLED}.get(status, ExitCode.JOB_FAILED)
