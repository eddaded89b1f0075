"""All errors that the product raises on purpose, each with a stable `code` that clients may branch on.

    ReplaceMeError
    |-- InvalidInput                 invalid_input        names field, value and what is expected
    |   |-- UnsupportedFamily        unsupported_family   this model type is not supported
    |   |-- UnsafeModel              unsafe_model         custom code, pickled weights, a hostile config
    |   |-- BrokenModel              broken_model         a truncated or inconsistent checkpoint
    |   |-- UnknownRepository        unknown_repository   a request names a repository that is missing, or private
    |   |-- CalibrationTooSmall      calibration_too_small
    |   |-- DoesNotFit               does_not_fit         the job needs more memory or disk space than a worker has
    |   |-- IdempotencyKeyReused     idempotency_key_reused  the key was sent with another request before
    |   |-- AddressRefused           address_refused      a webhook's host is private, reserved or of this machine
    |   |-- HostUnknown              host_unknown         a webhook's host has no address
    |   `-- LimitExceeded            limit_exceeded       more than this caller may ask for
    |-- NotFound                     not_found
    |   |-- JobNotFound              job_not_found
    |   |-- KeyNotFound              key_not_found
    |   |-- CredentialNotFound       credential_not_found
    |   `-- RepositoryNotFound       repository_not_found on the Hub: repository, revision or file
    |-- Conflict                     conflict
    |   |-- StaleTransition          stale_transition     the job is no longer in the expected state
    |   |-- LeaseLost                lease_lost           another worker holds, or may hold, this job
    |   `-- StaleParent              stale_parent         the target repository changed while the commit was prepared
    |-- AccessDenied                 access_denied        the Hub denies access
    |   |-- GatedRepository          gated_repository     its conditions have not been accepted
    |   `-- DisabledRepository       disabled_repository  the Hub has closed it
    |-- MissingScope                 missing_scope        the key does not allow this
    |-- TooManyRequests              too_many_requests    the caller's other requests have to end first
    |   `-- TooManyJobs              too_many_jobs        the caller has as many unfinished jobs as it may have
    |-- Unavailable                  unavailable          try again later
    |   |-- HubUnreachable           hub_unreachable
    |   |   |-- RateLimited          rate_limited         the Hub says when to come back
    |   |   `-- CorruptDownload      corrupt_download     what the Hub sent is not what it lists
    |   |-- QueueUnreachable         queue_unreachable
    |   |-- DatabaseUnreachable      database_unreachable
    |   `-- DatabaseOutdated         database_outdated    the migrations are missing
    |-- OutOfSpace                   out_of_space         no space left on a device
    |   `-- DatabaseFull             out_of_space         the database's device; it is unreachable for writes
    |-- OutOfMemory                  out_of_memory        on the host or the accelerator
    |-- OutOfTime                    out_of_time          the job's time limit in the queue, or for its run, has passed
    |   `-- StageTimeout             stage_timeout        one stage took longer than the worker allows
    |-- NumericalFailure             numerical_failure    values not finite, rank deficient, residual check failed
    |-- VerificationFailed           verification_failed  the saved model does not reload to the same function
    |-- GateRejected                 gate_rejected        the result is not worth what its gate wants
    |-- SecretUnreadable             secret_unreadable    it was encrypted with a key that is no longer given
    |-- Cancelled                    cancelled
    `-- WorkerLost                   worker_lost          no attempts left, or the runner sent no final message

Independent of HTTP, SQL and torch: `api/http/problems.py` maps these to responses, the supervisor to failure codes,
and `api/cli/exit_codes.py` to exit codes.
"""

from typing import ClassVar, Self

LONGEST_MESSAGE = 1000
"""Characters that answers and events carry of a message: names of a stranger's files and tensors are part of some."""


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


class UnknownRepository(InvalidInput):
    code = "unknown_repository"


class CalibrationTooSmall(InvalidInput):
    code = "calibration_too_small"


class DoesNotFit(InvalidInput):
    code = "does_not_fit"


class IdempotencyKeyReused(InvalidInput):
    code = "idempotency_key_reused"


class AddressRefused(InvalidInput):
    code = "address_refused"


class HostUnknown(InvalidInput):
    code = "host_unknown"


class LimitExceeded(InvalidInput):
    code = "limit_exceeded"


class NotFound(ReplaceMeError):
    code = "not_found"


class JobNotFound(NotFound):
    code = "job_not_found"


class KeyNotFound(NotFound):
    code = "key_not_found"


class CredentialNotFound(NotFound):
    code = "credential_not_found"


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


class GatedRepository(AccessDenied):
    code = "gated_repository"


class DisabledRepository(AccessDenied):
    code = "disabled_repository"


class MissingScope(ReplaceMeError):
    code = "missing_scope"


class TooManyRequests(ReplaceMeError):
    code = "too_many_requests"
    retry_after: ClassVar[float] = 5
    """In how many seconds to try again."""


class TooManyJobs(TooManyRequests):
    code = "too_many_jobs"
    retry_after = 30  # until some of the caller's jobs have ended


class Unavailable(ReplaceMeError):
    code = "unavailable"
    retry_after: float | None = None
    """In how many seconds to try again, where that is known."""


class HubUnreachable(Unavailable):
    code = "hub_unreachable"


class RateLimited(HubUnreachable):
    code = "rate_limited"

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class CorruptDownload(HubUnreachable):
    code = "corrupt_download"


class QueueUnreachable(Unavailable):
    code = "queue_unreachable"


class DatabaseUnreachable(Unavailable):
    code = "database_unreachable"


class DatabaseOutdated(Unavailable):
    code = "database_outdated"


class OutOfSpace(ReplaceMeError):
    code = "out_of_space"


class DatabaseFull(OutOfSpace, DatabaseUnreachable):
    """Who waits for the database to be reachable also waits for space on its device."""


class OutOfMemory(ReplaceMeError):
    code = "out_of_memory"


class OutOfTime(ReplaceMeError):
    code = "out_of_time"


class StageTimeout(OutOfTime):
    code = "stage_timeout"


class NumericalFailure(ReplaceMeError):
    code = "numerical_failure"


class VerificationFailed(ReplaceMeError):
    code = "verification_failed"


class GateRejected(ReplaceMeError):
    code = "gate_rejected"


class SecretUnreadable(ReplaceMeError):
    code = "secret_unreadable"


class Cancelled(ReplaceMeError):
    code = "cancelled"


class WorkerLost(ReplaceMeError):
    code = "worker_lost"
