"""All SQL of the ledger (signatures first; the bodies follow)."""

from collections.abc import Mapping, Sequence

from replaceme_core.jobs.records import Claim, Job, JobEvent, Metric, Page
from replaceme_core.jobs.session import LedgerSession
from replaceme_core.jobs.states import JobStatus
from replaceme_core.progress import Measured, Stage
from replaceme_core.spec import CompressionSpec


class Jobs:
    """The ledger within one transaction: `with database.session() as session: jobs = Jobs(session)`."""

    def __init__(self, session: LedgerSession) -> None:
        self._session = session

    def add(self, *, spec: CompressionSpec, owner: str, job_id: str | None = None) -> Job:
        """A new job, queued. `job_id` (a UUID) defaults to a random one. Raises `Conflict` if the id is taken."""
        raise NotImplementedError

    def get(self, job_id: str, *, owner: str | None = None) -> Job:
        """Raises `JobNotFound`, also where the job belongs to someone else than `owner`."""
        raise NotImplementedError

    def page(
        self,
        *,
        limit: int,
        cursor: str | None = None,
        owner: str | None = None,
        status: JobStatus | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Page[Job]:
        """Newest first. Raises `InvalidInput` (field `cursor` or `limit`)."""
        raise NotImplementedError

    def claim(self, job_id: str, *, worker: str, lease_seconds: float) -> Claim:
        """queued -> running, attempt + 1. Raises `JobNotFound`, or `StaleTransition` if it is not queued."""
        raise NotImplementedError

    def renew(self, claim: Claim, *, lease_seconds: float) -> bool:
        """True: cancel was requested. Raises `LeaseLost`."""
        raise NotImplementedError

    def assert_held(self, claim: Claim) -> None:
        """Raises `LeaseLost` if the token is old or the lease has run out."""
        raise NotImplementedError

    def record_spec(self, claim: Claim, spec: CompressionSpec) -> None:
        """The specification with every default filled in. Raises `LeaseLost`."""
        raise NotImplementedError

    def record_progress(
        self, claim: Claim, *, stage: Stage, overall: float, fraction: float, eta_seconds: float | None
    ) -> None:
        """A change of stage writes an event. Raises `LeaseLost`."""
        raise NotImplementedError

    def add_metrics(self, claim: Claim, measured: Sequence[Measured]) -> None:
        """Raises `LeaseLost`, or `NumericalFailure` for a value that is not finite."""
        raise NotImplementedError

    def succeed(
        self,
        claim: Claim,
        *,
        repo_id: str,
        revision: str,
        removed_blocks: Sequence[int],
        kept_blocks: Sequence[int],
        report: Mapping[str, object],
    ) -> None:
        """running -> succeeded. Raises `LeaseLost`, or `StaleTransition` if this claim has finished the job before."""
        raise NotImplementedError

    def fail(self, claim: Claim, *, code: str, message: str) -> None:
        """running -> failed. Raises as `succeed` does."""
        raise NotImplementedError

    def finish_cancelled(self, claim: Claim) -> None:
        """running -> cancelled. Raises as `succeed` does."""
        raise NotImplementedError

    def release(self, claim: Claim, *, reason: str) -> None:
        """running -> queued, or cancelled if that was requested. Raises as `succeed` does."""
        raise NotImplementedError

    def request_cancel(self, job_id: str, *, owner: str | None = None) -> Job:
        """queued: cancelled at once; running: the flag is set; cancelled: as it is. Else raises `StaleTransition`."""
        raise NotImplementedError

    def events(self, job_id: str, *, after: int = 0, limit: int = 100) -> Page[JobEvent]:
        """History in order, past `seq` `after`; `next_cursor` is the `after` of the next page. Raises `JobNotFound`."""
        raise NotImplementedError

    def metrics(self, job_id: str) -> list[Metric]:
        """Values of the present attempt, in the order they were measured. Raises `JobNotFound`."""
        raise NotImplementedError

    def report(self, job_id: str) -> dict[str, object]:
        """The content of `replaceme.json`. Raises `JobNotFound`, or `NotFound` while there is none."""
        raise NotImplementedError

    def active_ids(self) -> set[str]:
        """Ids of all jobs that are queued or running."""
        raise NotImplementedError

    def due_for_ringing(self, *, older_than_seconds: float, limit: int) -> list[str]:
        """Queued jobs whose last message is older than that; marks them as rung now."""
        raise NotImplementedError

    def take_back_lapsed(self, *, max_attempts: int, limit: int) -> list[str]:
        """Running jobs whose lease ran out -> queued, failed (`worker_lost`) or cancelled; ids of the queued ones."""
        raise NotImplementedError
