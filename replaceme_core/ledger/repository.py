"""All SQL of the ledger, as methods of `Jobs`. One `Jobs` lives within one transaction."""

from collections.abc import Collection, Mapping, Sequence

from sqlalchemy.orm import Session

from replaceme_core.hardware import WorkerKind
from replaceme_core.ledger import queries, submission, sweep
from replaceme_core.ledger.attempts import leases, outcomes, progress
from replaceme_core.ledger.reading import lists
from replaceme_core.ledger.reading.lists import ALL, JobFilters, Sort
from replaceme_core.ledger.reading.snapshots import JobSnapshot, OwnedId, get_snapshots
from replaceme_core.ledger.reading.timeline import Timeline, read_timelines
from replaceme_core.ledger.records import (
    BulkCancel,
    Claim,
    IdempotencyKey,
    Job,
    JobEvent,
    Metric,
    Page,
    QueuePosition,
    WakeUp,
)
from replaceme_core.ledger.requests import bulk, deletion, retry
from replaceme_core.ledger.scheduling import next_job, past_jobs, queue_position
from replaceme_core.ledger.scheduling.queue_snapshot import QueueSnapshot, read_queue
from replaceme_core.ledger.transitions import find_job
from replaceme_core.ledger.watching.logs import Logs
from replaceme_core.ledger.watching.workers import Workers
from replaceme_core.request.spec import CompressionSpec
from replaceme_core.runner.messages import Measured, Stage
from replaceme_core.runner.requests import PastJob


class Jobs:
    """The ledger within one transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @property
    def logs(self) -> Logs:
        """What runners wrote, in the same transaction."""
        return Logs(self._session)

    @property
    def workers(self) -> Workers:
        """The workers that have reported themselves, in the same transaction."""
        return Workers(self._session)

    def add(
        self,
        *,
        spec: CompressionSpec,
        owner: str,
        job_id: str | None = None,
        idempotency_key: IdempotencyKey | None = None,
        default_worker_kind: WorkerKind | None = None,
        key_id: str | None = None,
    ) -> Job:
        """Add a queued job, or return the one that the key has made. Raises `Conflict`, `IdempotencyKeyReused`."""
        return submission.add(
            self._session,
            spec=spec,
            owner=owner,
            job_id=job_id,
            idempotency_key=idempotency_key,
            default_worker_kind=default_worker_kind,
            key_id=key_id,
        )

    def find_by_key(self, key: IdempotencyKey, *, owner: str) -> Job | None:
        """The job that this key has made. Raises `IdempotencyKeyReused` if the key came with another request."""
        return submission.find_by_key(self._session, key, owner=owner)

    def request_cancel(self, job_id: str, *, owner: str | None = None) -> Job:
        """Cancel a queued job at once; ask the worker of a running one to. Raises `JobNotFound`, `StaleTransition`."""
        outcomes.request_cancel(self._session, job_id, owner=owner)
        return self.get(job_id)

    def cancel_matching(self, *, owner: str, filters: JobFilters, limit: int) -> BulkCancel:
        """Ask to cancel up to `limit` queued and running jobs that match. Raises `InvalidInput` (labels)."""
        return bulk.cancel_matching(self._session, owner=owner, filters=filters, limit=limit)

    def retry(
        self,
        job_id: str,
        *,
        owner: str,
        new_id: str,
        idempotency_key: IdempotencyKey | None = None,
        default_worker_kind: WorkerKind | None = None,
        key_id: str | None = None,
    ) -> Job:
        """Add a job with the specification of a finished one. Raises `JobNotFound`, `StaleTransition`; as `add`."""
        return retry.retry(
            self._session,
            job_id,
            owner=owner,
            new_id=new_id,
            idempotency_key=idempotency_key,
            default_worker_kind=default_worker_kind,
            key_id=key_id,
        )

    def delete(self, job_id: str, *, owner: str | None = None) -> None:
        """Delete a finished job and all about it. Raises `JobNotFound`, or `StaleTransition` before it has finished."""
        deletion.delete_job(self._session, job_id, owner=owner)

    # Read

    def get(self, job_id: str, *, owner: str | None = None) -> Job:
        """Raises `JobNotFound`, also if the job belongs to another owner."""
        return queries.get(self._session, job_id, owner=owner)

    def get_many(self, job_ids: Collection[str]) -> dict[str, Job]:
        """The jobs by their ids; ids that are no jobs are left out."""
        return queries.get_many(self._session, job_ids)

    def get_snapshots(self, wanted: Collection[OwnedId]) -> dict[OwnedId, JobSnapshot]:
        """The jobs with their versions, by id and owner; what is no job of that owner is left out."""
        return get_snapshots(self._session, wanted)

    def page(
        self,
        *,
        limit: int,
        cursor: str | None = None,
        owner: str | None = None,
        filters: JobFilters = ALL,
        sort: Sort = Sort.NEWEST,
    ) -> Page[JobSnapshot]:
        """One page of the jobs that match. Raises `InvalidInput` (cursor, limit, labels)."""
        return lists.page(self._session, limit=limit, cursor=cursor, owner=owner, filters=filters, sort=sort)

    def timelines(self, jobs: Collection[Job]) -> dict[str, Timeline]:
        """Attempts and stages of each job, by id."""
        return read_timelines(self._session, jobs)

    def events(self, job_id: str, *, after: int = 0, limit: int = 100) -> Page[JobEvent]:
        """Events with `seq` above `after`; `next_cursor` is the next `after`. Raises `JobNotFound`, `InvalidInput`."""
        return queries.events(self._session, job_id, after=after, limit=limit)

    def last_event(self, job_id: str) -> JobEvent:
        """The newest event. Raises `JobNotFound`."""
        return queries.last_event(self._session, job_id)

    def metrics(self, job_id: str) -> list[Metric]:
        """Values of the present attempt, in the order in which they were written. Raises `JobNotFound`."""
        return queries.metrics(self._session, job_id)

    def report(self, job_id: str) -> dict[str, object]:
        """The content of `replaceme.json`. Raises `JobNotFound`, or `NotFound` while there is none."""
        return queries.report(self._session, job_id)

    def has_made(self, job_id: str, repo_id: str, *, owner: str) -> bool:
        """Whether this job is one of the owner's and its result goes to `repo_id`. False for an id that is none."""
        return queries.has_made(self._session, job_id, repo_id, owner=owner)

    def active_among(self, job_ids: Collection[str]) -> set[str]:
        """Those of `job_ids` whose jobs are queued or running."""
        return queries.active_among(self._session, job_ids)

    def queue_position(self, job_id: str) -> QueuePosition | None:
        """Position and estimated start; `None` if the job is not queued. Raises `JobNotFound`."""
        return queue_position.find_queue_position(self._session, find_job(self._session, job_id))

    def queue_snapshot(self) -> QueueSnapshot:
        """The whole queue, from which the position of every queued job follows."""
        return read_queue(self._session)

    def has_active(self, most: int, *, owner: str, exact: bool = False) -> bool:
        """Whether the owner has `most` unfinished jobs or more. `exact`: of simultaneous transactions each counts."""
        return queries.has_active(self._session, most, owner=owner, exact=exact)

    def has_startable_job(self, *, worker_kinds: Sequence[WorkerKind] | None = None) -> bool:
        """Whether a queued job for these kinds of workers, or for any, could start now."""
        return next_job.has_startable_job(self._session, worker_kinds=worker_kinds)

    def past_jobs(self, worker_kind: WorkerKind) -> tuple[PastJob, ...]:
        """What the latest jobs took on this kind of worker, the newest first."""
        return past_jobs.past_jobs(self._session, worker_kind)

    # Claim and report

    def claim_next(
        self, *, worker: str, lease_seconds: float, worker_kinds: Sequence[WorkerKind] | None = None
    ) -> Claim | None:
        """queued -> running for the next job, attempt + 1; `None` if no job can start. `worker` is for display only."""
        return leases.claim_next(self._session, worker=worker, lease_seconds=lease_seconds, worker_kinds=worker_kinds)

    def renew(self, claim: Claim, *, lease_seconds: float) -> bool:
        """Extend the lease; returns whether a cancel was requested. Raises `LeaseLost`."""
        return leases.renew(self._session, claim, lease_seconds=lease_seconds)

    def assert_held(self, claim: Claim) -> None:
        """Raises `LeaseLost` if the token is old or the lease has expired."""
        leases.assert_held(self._session, claim)

    def record_spec(self, claim: Claim, spec: CompressionSpec) -> None:
        """Store the resolved specification; priority and limits stay. Raises `LeaseLost`."""
        progress.record_spec(self._session, claim, spec)

    def record_progress(
        self,
        claim: Claim,
        *,
        stage: Stage,
        overall: float,
        fraction: float,
        eta_seconds: float | None,
        eta_error_seconds: float | None = None,
        resumed_from: Stage | None = None,
    ) -> None:
        """Store `overall` and `fraction` (of the stage), from 0 to 1. Raises `LeaseLost`."""
        progress.record_progress(
            self._session,
            claim,
            stage=stage,
            overall=overall,
            fraction=fraction,
            eta_seconds=eta_seconds,
            eta_error_seconds=eta_error_seconds,
            resumed_from=resumed_from,
        )

    def add_metrics(self, claim: Claim, measured: Sequence[Measured]) -> None:
        """Store all of `measured`. Raises `LeaseLost`, or `NumericalFailure` if a value is not finite."""
        progress.add_metrics(self._session, claim, measured)

    # Finish

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
        outcomes.succeed(
            self._session,
            claim,
            repo_id=repo_id,
            revision=revision,
            removed_blocks=removed_blocks,
            kept_blocks=kept_blocks,
            report=report,
        )

    def fail(self, claim: Claim, *, code: str, message: str, report: Mapping[str, object] | None = None) -> None:
        """running -> failed. `code` is one of `replaceme_core.errors`. Raises as `succeed` does."""
        outcomes.fail(self._session, claim, code=code, message=message, report=report)

    def finish_cancelled(self, claim: Claim) -> None:
        """running -> cancelled. Raises as `succeed` does."""
        outcomes.finish_cancelled(self._session, claim)

    def release(self, claim: Claim, *, reason: str, counts: bool = True) -> None:
        """running -> queued, or -> cancelled if requested. `counts`: as an attempt. Raises as `succeed` does."""
        outcomes.release(self._session, claim, reason=reason, counts=counts)

    # Sweep

    def requeue_expired(self, *, max_attempts: int, limit: int, backoff_seconds: float = 0.0) -> list[str]:
        """Running jobs with expired leases: queued again (their ids), cancelled, or failed after `max_attempts`."""
        return sweep.requeue_expired(
            self._session, max_attempts=max_attempts, limit=limit, backoff_seconds=backoff_seconds
        )

    def fail_overdue(self, *, limit: int) -> list[str]:
        """queued -> failed (`out_of_time`) for jobs whose deadline has passed; returns their ids."""
        return sweep.fail_overdue(self._session, limit=limit)

    def collect_wake_ups(
        self, *, older_than_seconds: float, limit: int, worker_kinds: Sequence[WorkerKind] | None = None
    ) -> list[WakeUp]:
        """Mark queued jobs that could start as enqueued now, and return their wake-up messages."""
        return sweep.collect_wake_ups(
            self._session, older_than_seconds=older_than_seconds, limit=limit, worker_kinds=worker_kinds
        )

    def delete_expired_keys(self, *, limit: int) -> int:
        """Delete idempotency keys that have expired; returns how many."""
        return submission.delete_expired_keys(self._session, limit=limit)

    def delete_finished(self, *, older_than_seconds: float, limit: int) -> int:
        """Delete jobs that finished longer ago than that, the oldest first; returns how many."""
        return deletion.delete_finished(self._session, older_than_seconds=older_than_seconds, limit=limit)
