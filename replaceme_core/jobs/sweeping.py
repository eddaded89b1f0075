"""What the sweep of each worker does: ring again, take back jobs whose worker fell silent, and more.

Any number of sweeps may run at once: on PostgreSQL each skips the rows that another one holds; on SQLite the second
waits until the first is done, and then finds nothing left to do.
"""

from collections.abc import Sequence

from sqlalchemy import delete, select

from replaceme_core.admission.worker_kind import WorkerKind
from replaceme_core.errors import OutOfTime, WorkerLost
from replaceme_core.jobs.clock import now
from replaceme_core.jobs.leases import NO_LEASE, NO_PROGRESS, finished
from replaceme_core.jobs.records import WakeUp
from replaceme_core.jobs.scheduling.next_job import QUEUED, is_due, is_served
from replaceme_core.jobs.session import LedgerSession
from replaceme_core.jobs.states import EventType, JobStatus
from replaceme_core.jobs.tables import IdempotencyKeyRow, JobRow
from replaceme_core.jobs.transitions import Event, change, move

MOST_DOUBLINGS = 6


class Sweeping:
    """The part of `Jobs` that repairs."""

    def __init__(self, session: LedgerSession) -> None:
        self._session = session

    def due_for_wake_up(
        self, *, older_than_seconds: float, limit: int, worker_kinds: Sequence[WorkerKind] | None = None
    ) -> list[WakeUp]:
        """Queued jobs that could start, whose last message was never sent, or is older than that: the oldest first.

        Those of `routes` and for any worker; all by default. They count as rung from now on, so that the sweeps of
        other workers leave them alone.
        """
        # one after the other, so that each is a range of the index, whatever the length of the table
        wake_ups: list[WakeUp] = []
        for silent in (JobRow.enqueued_at.is_(None), JobRow.enqueued_at < now(plus_seconds=-older_than_seconds)):
            due = self._session.execute(
                select(JobRow.id, JobRow.worker_kind)
                .where(QUEUED, is_due(), is_served(worker_kinds), silent)
                .order_by(JobRow.enqueued_at)
                .limit(limit - len(wake_ups))
                .with_for_update(skip_locked=True, key_share=True)
            )
            wake_ups += [WakeUp(job_id=job_id, worker_kind=worker_kind) for job_id, worker_kind in due]
        for wake_up in wake_ups:
            change(self._session, wake_up.job_id, JobRow.status == JobStatus.QUEUED, values={"enqueued_at": now()})
        return wake_ups

    def forget_keys(self, *, limit: int) -> int:
        """Remove keys of requests that are no longer kept; returns how many."""
        expired = self._session.scalars(
            select(IdempotencyKeyRow.job_id)
            .where(IdempotencyKeyRow.expires_at <= now())
            .order_by(IdempotencyKeyRow.expires_at)
            .limit(limit)
            .with_for_update(skip_locked=True)
        ).all()
        if expired:
            self._session.execute(delete(IdempotencyKeyRow).where(IdempotencyKeyRow.job_id.in_(expired)))
        return len(expired)

    def fail_overdue(self, *, limit: int) -> list[str]:
        """Queued jobs whose deadline has passed fail with `out_of_time`: those that waited too long for their first
        start, and those that were taken back and cannot end in time any more. Returns their ids.
        """
        overdue = self._session.scalars(
            select(JobRow)
            .where(JobRow.status == JobStatus.QUEUED, JobRow.deadline_at <= now())
            .order_by(JobRow.deadline_at)
            .limit(limit)
            .with_for_update(skip_locked=True, key_share=True),
            execution_options={"populate_existing": True},
        ).all()
        for row in overdue:
            if row.started_at is None:
                message = f"not started within {row.max_queue_seconds:g} seconds (max_queue_seconds)"
            else:
                message = (
                    f"not done within {row.max_runtime_seconds:g} seconds of its first start (max_runtime_seconds)"
                )
            move(
                self._session,
                row.id,
                old=JobStatus.QUEUED,
                new=JobStatus.FAILED,
                values={**finished(), "error_code": OutOfTime.code, "error_message": message},
                events=[(EventType.FAILED, {"code": OutOfTime.code, "message": message})],
            )
        return [row.id for row in overdue]

    def requeue_expired(self, *, max_attempts: int, limit: int, backoff_seconds: float = 0.0) -> list[str]:
        """Running jobs whose lease has run out become queued, or cancelled if that was requested, or failed with
        `worker_lost` if their attempts are used up. Returns the ids of those that are queued.

        These pause for `backoff_seconds` times 2, 4, 8 ... (64 at most) after their first, second, third attempt, and
        are then due for ringing: what takes workers down with it should not take them all at once.
        """
        lapsed = self._session.scalars(
            select(JobRow)
            .where(JobRow.status == JobStatus.RUNNING, JobRow.lease_expires_at < now())
            .order_by(JobRow.lease_expires_at)
            .limit(limit)
            .with_for_update(skip_locked=True, key_share=True),
            execution_options={"populate_existing": True},
        ).all()
        # the rows are objects of this session: an update changes them, so decide before
        ends = [(row.id, self._take_back(row, max_attempts, backoff_seconds)) for row in lapsed]
        return [job_id for job_id, status in ends if status is JobStatus.QUEUED]

    def _take_back(self, row: JobRow, max_attempts: int, backoff_seconds: float) -> JobStatus:
        events: list[Event] = [(EventType.LEASE_LAPSED, {"worker": row.worker})]
        values: dict[str, object]
        if row.cancel_requested_at is not None:
            new, values = JobStatus.CANCELLED, {**finished(), **NO_LEASE}
            events.append((EventType.CANCELLED, {}))
        elif row.attempt - row.uncounted_attempts >= max_attempts:
            message = f"the worker of attempt {row.attempt} of {max_attempts + row.uncounted_attempts} fell silent"
            new = JobStatus.FAILED
            values = {**finished(), **NO_LEASE, "error_code": WorkerLost.code, "error_message": message}
            events.append((EventType.FAILED, {"code": WorkerLost.code, "message": message}))
        else:
            pause = backoff_seconds * 2 ** min(row.attempt - row.uncounted_attempts, MOST_DOUBLINGS)
            new, values = JobStatus.QUEUED, {**NO_PROGRESS, **NO_LEASE, "enqueued_at": None}
            values["not_before"] = now(plus_seconds=pause) if pause > 0 else None
        same_claim = JobRow.lease_token == row.lease_token
        move(self._session, row.id, same_claim, old=JobStatus.RUNNING, new=new, values=values, events=events)
        return new
