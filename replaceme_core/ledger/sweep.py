"""What the sweep of each worker does to jobs: enqueue them again, requeue those with expired leases, end overdue ones.

Any number of sweeps may run at once. On PostgreSQL each skips the rows that another one has locked. On SQLite the
second waits for the first and then finds nothing left to do.
"""

from collections.abc import Collection, Sequence
from datetime import datetime

from sqlalchemy import select, text
from sqlalchemy.orm import InstrumentedAttribute, Session

from replaceme_core.errors import OutOfTime, WorkerLost
from replaceme_core.hardware import WorkerKind
from replaceme_core.ledger.database import Database, delete_oldest, now
from replaceme_core.ledger.scheduling import QUEUED, is_below_limit, is_due, is_served, keys_at_limit
from replaceme_core.ledger.states import EventType, JobStatus
from replaceme_core.ledger.tables import IdempotencyKeyRow, JobRow
from replaceme_core.ledger.transitions import NO_LEASE, Event, failure, transition, update_job

MAX_DOUBLINGS = 6


def collect_wake_ups(
    session: Session, *, older_than_seconds: float, limit: int, worker_kinds: Sequence[WorkerKind] | None = None
) -> list[tuple[str, WorkerKind | None]]:
    """Mark queued jobs that could start as enqueued now; returns job and kind of worker of each message to send.

    Takes those whose message was never sent or is older than `older_than_seconds`, the oldest message first. The mark
    keeps the sweeps of other workers from sending the same messages.
    """
    allowed = is_below_limit(keys_at_limit(session))
    # one query after the other, so that each is a range of the index however long the table is
    wake_ups: list[tuple[str, WorkerKind | None]] = []
    for unannounced in (JobRow.enqueued_at.is_(None), JobRow.enqueued_at < now(plus_seconds=-older_than_seconds)):
        due = session.execute(
            select(JobRow.id, JobRow.worker_kind)
            .where(QUEUED, is_due(), is_served(worker_kinds), unannounced, *allowed)
            .order_by(JobRow.enqueued_at)
            .limit(limit - len(wake_ups))
            .with_for_update(skip_locked=True, key_share=True)
        )
        wake_ups += [(job_id, worker_kind) for job_id, worker_kind in due]
    for job_id, _ in wake_ups:
        update_job(session, job_id, JobRow.status == JobStatus.QUEUED, values={"enqueued_at": now()})
    return wake_ups


def _lock_some(
    session: Session, status: JobStatus, end: InstrumentedAttribute[datetime | None], limit: int
) -> Sequence[JobRow]:
    """Jobs of this status whose `end` has passed, those first for which it is the longest ago."""
    query = select(JobRow).where(JobRow.status == status, end < now()).order_by(end).limit(limit)
    return session.scalars(query.with_for_update(skip_locked=True, key_share=True)).all()


def fail_overdue(session: Session, *, limit: int) -> list[str]:
    """Fail queued jobs whose deadline has passed with `out_of_time`; returns their ids.

    These are jobs that waited too long for their first start, and requeued jobs that can no longer end in time.
    """
    overdue = _lock_some(session, JobStatus.QUEUED, JobRow.deadline_at, limit)
    for row in overdue:
        if row.started_at is None:
            message = f"not started within {row.max_queue_seconds:.15g} s (max_queue_seconds)"
        else:
            message = f"not done within {row.max_runtime_seconds:.15g} s of its first start (max_runtime_seconds)"
        values, event = failure(OutOfTime.code, message)
        transition(session, row.id, old=JobStatus.QUEUED, new=JobStatus.FAILED, values=values, events=[event])
    return [row.id for row in overdue]


def requeue_expired(session: Session, *, max_attempts: int, limit: int, backoff_seconds: float = 0.0) -> list[str]:
    """End the attempts of running jobs whose lease has expired; returns the ids of the jobs that are queued again.

    A job is cancelled instead if that was requested, and fails with `worker_lost` if its attempts are used up. A queued
    one must not start for `backoff_seconds` times 2, 4, 8 ... (64 at most) after its first, second, third attempt: a
    job that kills its worker should not kill all workers at once.
    """
    expired = _lock_some(session, JobStatus.RUNNING, JobRow.lease_expires_at, limit)
    # each row is an object of this session, which its update changes: `_end_attempt` decides before it writes
    ends = [(row.id, _end_attempt(session, row, max_attempts, backoff_seconds)) for row in expired]
    return [job_id for job_id, status in ends if status is JobStatus.QUEUED]


def _end_attempt(session: Session, row: JobRow, max_attempts: int, backoff_seconds: float) -> JobStatus:
    events: list[Event] = [(EventType.LEASE_LAPSED, {"worker": row.worker})]
    values = dict(NO_LEASE)
    if row.cancel_requested_at is not None:
        new = JobStatus.CANCELLED
        events.append((EventType.CANCELLED, {}))
    elif row.attempt - row.uncounted_attempts >= max_attempts:
        attempts = f"attempt {row.attempt} of {max_attempts + row.uncounted_attempts}"
        new = JobStatus.FAILED
        error, event = failure(WorkerLost.code, f"the worker of {attempts} missed its heartbeat: its lease expired")
        values |= error
        events.append(event)
    else:
        pause = pause_after(row.attempt - row.uncounted_attempts, backoff_seconds)
        new = JobStatus.QUEUED
        values["not_before"] = now(plus_seconds=pause) if pause > 0 else None
    same_claim = JobRow.lease_token == row.lease_token
    transition(session, row.id, same_claim, old=JobStatus.RUNNING, new=new, values=values, events=events)
    return new


def pause_after(counted: int, seconds: float) -> float:
    """The pause after the first, second, third attempt: 2, 4, 8 ... times `seconds`."""
    return seconds * (1 << min(counted, MAX_DOUBLINGS))


def delete_expired_keys(session: Session, *, limit: int) -> int:
    """Delete up to `limit` idempotency keys that have expired; returns how many."""
    return delete_oldest(session, IdempotencyKeyRow.job_id, IdempotencyKeyRow.expires_at, until=now(), limit=limit)


def delete_finished(session: Session, *, older_than_seconds: float, limit: int) -> int:
    """Delete up to `limit` jobs that finished longer ago than that, the oldest first; returns how many."""
    until = now(plus_seconds=-older_than_seconds)
    return delete_oldest(session, JobRow.number, JobRow.finished_at, until=until, limit=limit)


def refresh_statistics(database: Database) -> None:
    """Have SQLite look at tables that are ten times as large as when it did so last; PostgreSQL does this by itself.

    Without it, SQLite assumes that each owner has ten jobs, and reads all of them for what another index would find.
    """
    with database.session() as session:
        if session.get_bind().dialect.name == "sqlite":
            session.execute(text("PRAGMA analysis_limit = 1000"))  # rows of an index
            session.execute(text("PRAGMA optimize = 0x10002"))


def statuses(session: Session, job_ids: Collection[str]) -> dict[str, JobStatus]:
    """The statuses of those of `job_ids` that are jobs."""
    return dict(session.execute(select(JobRow.id, JobRow.status).where(JobRow.id.in_(job_ids))).all())
