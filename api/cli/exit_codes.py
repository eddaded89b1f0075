"""The exit codes of the command line, and the tables that map errors, HTTP statuses and jobs to them."""

from enum import IntEnum
from types import MappingProxyType
from typing import Final

from replaceme_core import errors


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
