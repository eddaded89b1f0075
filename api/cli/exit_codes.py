"""How a command ends: signals, the exit codes, the table that maps errors to them, and failures."""

import errno
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import Self

import typer

from api.cli.output.console import print_json, print_note
from api.client.errors import NotAllowed, Refused, ServiceBroken, ServiceError
from api.client.models import FieldError, Job
from replaceme_core import errors
from replaceme_core.errors import InvalidInput, ReplaceMeError
from replaceme_core.signals import Handler, handle
from replaceme_core.wording import shorten


@contextmanager
def handled(handler: Handler, *numbers: signal.Signals) -> Iterator[None]:
    """Handle these signals with `handler`. Where `nohup` has the command outlive its terminal, SIGHUP stays ignored."""
    before = handle(handler, *numbers)
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


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


_BY_CLASS: Mapping[type[Exception], ExitCode] = {
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
    errors.Cancelled: ExitCode.CANCELLED,
    errors.WorkerLost: ExitCode.JOB_FAILED,
    NotAllowed: ExitCode.NOT_ALLOWED,
    ServiceBroken: ExitCode.SERVICE_UNREACHABLE,
    Refused: ExitCode.BAD_INPUT,
    ServiceError: ExitCode.SERVICE_UNREACHABLE,
}
"""A subclass has the exit code of its nearest parent here."""


def exit_code_of(kind: type[Exception]) -> ExitCode:
    """The exit code for an error of the core or of the client; one of no other class is an internal error."""
    return next((_BY_CLASS[parent] for parent in kind.__mro__ if parent in _BY_CLASS), ExitCode.INTERNAL_ERROR)


def exit_code_of_job(job: Job) -> int:
    """The exit code for a job that has ended."""
    if job.error is not None and job.error.code == errors.GateRejected.code:
        return ExitCode.GATE_REJECTED
    return {"succeeded": ExitCode.SUCCEEDED, "cancelled": ExitCode.CANCELLED}.get(job.status, ExitCode.JOB_FAILED)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """How a command ends. `errors` are invalid fields of a request."""

    exit_code: ExitCode
    code: str
    message: str
    field: str | None = None
    errors: Sequence[FieldError] = ()

    @classmethod
    def of(cls, error: Exception) -> Self | None:
        """That with an error of the core or of the client; `None` for one that nobody expects.

        The notes of an error, the last lines of a runner's log, are printed before.
        """
        for line in getattr(error, "__notes__", ()):
            print_note(line)
        exit_code = exit_code_of(type(error))
        match error:
            case ReplaceMeError():
                return cls(
                    exit_code=exit_code,
                    code=error.code,
                    message=error.explained,
                    field=error.field if isinstance(error, InvalidInput) else None,
                )
            case Refused(problem=problem):
                return cls(exit_code=exit_code, code=problem.code, message=str(error), errors=problem.errors)
            # which a path that was given, or a full standard output, can cause anywhere
            case OSError(errno=errno.EACCES | errno.ENAMETOOLONG | errno.ENOSPC):
                message = f"{shorten(str(error.filename or 'the output'))}: {error.strerror}"
                return cls(exit_code=ExitCode.BAD_INPUT, code=InvalidInput.code, message=message)
            case typer.TyperException():  # of arguments: also an unknown option, or one too many
                return cls(exit_code=ExitCode.BAD_INPUT, code=InvalidInput.code, message=error.format_message())
            case ServiceError():
                return cls(exit_code=exit_code, code="service_unreachable", message=str(error))
        return None

    def show(self, *, as_json: bool) -> None:
        """Print the message on standard error and, with `as_json`, an object on standard output."""
        lines = [f"{one.field}: {one.message}" if one.field else one.message for one in self.errors]
        if len(lines) == 1:  # the message of the service repeats what is in them
            print_note(f"error: {lines[0]}")
        else:
            print_note(f"error: {len(lines)} fields are wrong" if lines else f"error: {self.message}")
            for line in lines:
                print_note(f"  {line}")
        if as_json:
            errors = [one.model_dump(mode="json") for one in self.errors]
            body = {"code": self.code, "message": self.message, "field": self.field, "errors": errors}
            try:
                print_json({"error": body})
            except OSError as error:
                if error.errno != errno.ENOSPC:  # the output is full, and that may be what the message says
                    raise
