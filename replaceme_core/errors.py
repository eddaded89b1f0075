"""All errors that the product raises on purpose, each with a stable `code` that clients may branch on.

    ReplaceMeError
    |-- InvalidInput                 invalid_input        names field, value and what is expected
    |   |-- UnsupportedFamily        unsupported_family   this model type is not supported
    |   |-- UnsafeModel              unsafe_model         custom code, pickled weights, a hostile config
    |   |-- BrokenModel              broken_model         a truncated or inconsistent checkpoint
    |   |-- CalibrationTooSmall      calibration_too_small
    |   `-- IdempotencyKeyReused     idempotency_key_reused  the key was sent with another request before
    |-- NotFound                     not_found
    |   |-- JobNotFound              job_not_found
    |   `-- RepositoryNotFound       repository_not_found on the Hub: repository, revision or file
    |-- Conflict                     conflict
    |   |-- StaleTransition          stale_transition     the job is no longer in the expected state
    |   |-- LeaseLost                lease_lost           another worker holds, or may hold, this job
    |   `-- StaleParent              stale_parent         the target repository changed while the commit was prepared
    |-- AccessDenied                 access_denied        the Hub denies access
    |-- Unavailable                  unavailable          try again later
    |   |-- HubUnreachable           hub_unreachable
    |   |-- QueueUnreachable         queue_unreachable
    |   |-- DatabaseUnreachable      database_unreachable
    |   `-- DatabaseOutdated         database_outdated    the migrations are missing
    |-- OutOfSpace                   out_of_space         no space left on a device
    |-- OutOfMemory                  out_of_memory        on the host or the accelerator
    |-- OutOfTime                    out_of_time          the job's time limit in the queue, or for its run, has passed
    |-- NumericalFailure             numerical_failure    values not finite, rank deficient, residual check failed
    |-- VerificationFailed           verification_failed  the saved model does not reload to the same function
    |-- Cancelled                    cancelled
    `-- WorkerLost                   worker_lost          no attempts left, or the runner sent no final message

Independent of HTTP, SQL and torch: `api/http/problems.py` maps these to responses, the supervisor to failure codes,
and `api/cli/exit_codes.py` to exit codes.
"""

from typing import ClassVar, Self


class ReplaceMeError(Exception):
    """Base of all errors raised on purpose. `str(error)` is one sentence for people."""

    code: ClassVar[str] = "internal_error"
    reason: str | None = None
    """What went wrong in the words of the system or of a library. It may name paths and hosts of the server, so it goes
    into the log and to the operator's own terminal, never into an answer."""

    def because(self, reason: object) -> Self:
        """The error itself, with this `reason`."""
        self.reason = str(reason).strip()
        return self

    @property
    def message(self) -> str:
        return str(self)

    @property
    def explained(self) -> str:
        """The message with its reason, for the operator."""
        return f"{self.message} ({self.reason})" if self.reason else self.message


class InvalidInput(ReplaceMeError):
    """The request cannot be carried out as it stands.

    `field` is a dotted path into the request ("calibration.samples"), `value` is the invalid value.
    """

    code = "invalid_input"

    def __init__(self, message: str, *, field: str | None = None, value: object = None) -> None:
        super().__init__(message)
        self.field = field
        self.value = value


class UnsupportedFamily(InvalidInput):
    code = "unsupported_family"


class UnsafeModel(InvalidInput):
    code = "unsafe_model"


class BrokenModel(InvalidInput):
    code = "broken_model"


class CalibrationTooSmall(InvalidInput):
    code = "calibration_too_small"


class IdempotencyKeyReused(InvalidInput):
    code = "idempotency_key_reused"


class NotFound(ReplaceMeError):
    code = "not_found"


class JobNotFound(NotFound):
    code = "job_not_found"


class RepositoryNotFound(NotFound):
    code = "repository_not_found"


class Conflict(ReplaceMeError):
    code = "conflict"


class StaleTransition(Conflict):
    code = "stale_transition"


class LeaseLost(Conflict):
    code = "lease_lost"


class StaleParent(Conflict):
    code = "stale_parent"


class AccessDenied(ReplaceMeError):
    code = "access_denied"


class Unavailable(ReplaceMeError):
    code = "unavailable"


class HubUnreachable(Unavailable):
    code = "hub_unreachable"


class QueueUnreachable(Unavailable):
    code = "queue_unreachable"


class DatabaseUnreachable(Unavailable):
    code = "database_unreachable"


class DatabaseOutdated(Unavailable):
    code = "database_outdated"


class OutOfSpace(ReplaceMeError):
    code = "out_of_space"


class OutOfMemory(ReplaceMeError):
    code = "out_of_memory"


class OutOfTime(ReplaceMeError):
    code = "out_of_time"


class NumericalFailure(ReplaceMeError):
    code = "numerical_failure"


class VerificationFailed(ReplaceMeError):
    code = "verification_failed"


class Cancelled(ReplaceMeError):
    code = "cancelled"


class WorkerLost(ReplaceMeError):
    code = "worker_lost"
