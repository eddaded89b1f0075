"""All errors that the product raises on purpose, each with a stable `code` that clients may branch on.

Who handles `Unavailable` handles `HubUnreachable` too; an error that names no `code` has that of its base. Independent
of HTTP, SQL and torch: `api/http/problems.py` maps these to responses, the supervisor to failure codes, and
`api/cli/exit_codes.py` to exit codes.
"""

from typing import ClassVar, Self

LONGEST_MESSAGE = 1000
"""Characters that a runner sends of a message: names of a stranger's files and tensors are part of some."""


class ReplaceMeError(Exception):
    """Base of all errors raised on purpose. `str(error)` is one sentence for people."""

    code: ClassVar[str] = "internal_error"
    reason: str | None = None
    """What went wrong in the words of the system or of a library. It may name paths and hosts of the server, so it goes
    into the log and to the operator's own terminal, never into an answer."""

    def __init_subclass__(cls, *, code: str | None = None) -> None:
        if code is not None:
            cls.code = code

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


class InvalidInput(ReplaceMeError, code="invalid_input"):
    """The request cannot be carried out as it stands.

    `field` is a dotted path into the request ("calibration.samples"), `value` is the invalid value.
    """

    field: str | None = None

    def __init__(self, message: str, *, field: str | None = None, value: object = None) -> None:
        super().__init__(message)
        self.field = field or self.field
        self.value = value


class UnsupportedFamily(InvalidInput, code="unsupported_family"):
    """This model type is not supported."""

    field = "model"


class UnsafeModel(InvalidInput, code="unsafe_model"):
    """Custom code, pickled weights, a hostile config."""

    field = "model"


class BrokenModel(InvalidInput, code="broken_model"):
    """A truncated or inconsistent checkpoint."""

    field = "model"


class UnknownRepository(InvalidInput, code="unknown_repository"):
    """A request names a repository that is missing, or private."""


class CalibrationTooSmall(InvalidInput, code="calibration_too_small"): ...


class DoesNotFit(InvalidInput, code="does_not_fit"):
    """The job needs more memory or disk space than a worker has."""

    field = "model"


class IdempotencyKeyReused(InvalidInput, code="idempotency_key_reused"):
    """The key was sent with another request before."""


class AddressRefused(InvalidInput, code="address_refused"):
    """A webhook's host is private, reserved or of this machine."""


class HostUnknown(InvalidInput, code="host_unknown"):
    """A webhook's host has no address."""


class LimitExceeded(InvalidInput, code="limit_exceeded"):
    """More than this caller may ask for."""


class NotFound(ReplaceMeError, code="not_found"): ...


class JobNotFound(NotFound, code="job_not_found"): ...


class KeyNotFound(NotFound, code="key_not_found"): ...


class CredentialNotFound(NotFound, code="credential_not_found"): ...


class RepositoryNotFound(NotFound, code="repository_not_found"):
    """On the Hub: repository, revision or file."""


class Conflict(ReplaceMeError, code="conflict"): ...


class StaleTransition(Conflict, code="stale_transition"):
    """The job is no longer in the expected state."""


class LeaseLost(Conflict, code="lease_lost"):
    """Another worker holds, or may hold, this job."""


class StaleParent(Conflict, code="stale_parent"):
    """The target repository changed while the commit was prepared."""


class AccessDenied(ReplaceMeError, code="access_denied"):
    """The Hub denies access."""


class GatedRepository(AccessDenied, code="gated_repository"):
    """Its conditions have not been accepted."""


class DisabledRepository(AccessDenied, code="disabled_repository"):
    """The Hub has closed it."""


class MissingScope(ReplaceMeError, code="missing_scope"):
    """The key does not allow this."""


class TooManyRequests(ReplaceMeError, code="too_many_requests"):
    """Too many at once, or in a minute, from this caller."""

    retry_after: ClassVar[float] = 5
    """In how many seconds to try again."""


class TooManyJobs(TooManyRequests, code="too_many_jobs"):
    """The caller has as many unfinished jobs as it may have."""

    retry_after = 30  # until some of the caller's jobs have ended


class Unavailable(ReplaceMeError, code="unavailable"):
    """`retry_after`: in how many seconds to try again, where that is known."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class HubUnreachable(Unavailable, code="hub_unreachable"): ...


class RateLimited(HubUnreachable, code="rate_limited"):
    """The Hub limits requests, and says when to try again."""


class CorruptDownload(HubUnreachable, code="corrupt_download"):
    """What the Hub sent is not what it lists."""


class QueueUnreachable(Unavailable, code="queue_unreachable"): ...


class DatabaseUnreachable(Unavailable, code="database_unreachable"): ...


class DatabaseOutdated(Unavailable, code="database_outdated"):
    """The migrations are missing."""


class OutOfSpace(ReplaceMeError, code="out_of_space"):
    """No space left on a device."""


class DatabaseFull(OutOfSpace, DatabaseUnreachable):
    """No space on the device of the database. Code that waits for the database waits for this, too."""


class OutOfMemory(ReplaceMeError, code="out_of_memory"):
    """On the host or the accelerator."""


class OutOfTime(ReplaceMeError, code="out_of_time"):
    """The job's time limit in the queue, or for its run, has passed."""


class StageTimeout(OutOfTime, code="stage_timeout"):
    """One stage took longer than the worker allows."""


class NumericalFailure(ReplaceMeError, code="numerical_failure"):
    """Values not finite, rank deficient, residual check failed."""


class VerificationFailed(ReplaceMeError, code="verification_failed"):
    """The saved model does not reload to the same function."""


class GateRejected(ReplaceMeError, code="gate_rejected"):
    """The result misses a criterion of its gate."""


class SecretUnreadable(ReplaceMeError, code="secret_unreadable"):
    """It was encrypted with a key that is no longer given."""


class Cancelled(ReplaceMeError, code="cancelled"): ...


class WorkerLost(ReplaceMeError, code="worker_lost"):
    """No attempts left, or the runner sent no final message."""
