"""What the sweep of each worker does to shards: requeue those with expired leases, enqueue jobs with waiting ones."""

from collections.abc import Sequence

from sqlalchemy import Select, delete, func, select, update
from sqlalchemy.orm import Session

from replaceme_core.hardware import WorkerKind
from replaceme_core.ledger.clock import now
from replaceme_core.ledger.records import WakeUp
from replaceme_core.ledger.scheduling.eligibility import RUNNING, is_served
from replaceme_core.ledger.shards.rows import is_shard, write_news
from replaceme_core.ledger.shards.tables import ShardRow
from replaceme_core.ledger.states import TERMINAL, ShardNews, ShardState
from replaceme_core.ledger.tables import JobRow
from replaceme_core.ledger.transitions import NO_LEASE, lock_job

_ExpiredShards = Select[str, int, str | None, str | None]


def requeue_expired(session: Session, *, limit: int) -> list[tuple[str, int]]:
    """running -> waiting for shards whose lease has expired; returns their job ids and numbers."""
    return _requeue(session, _expired().order_by(ShardRow.lease_expires_at).limit(limit))


def requeue_expired_of(session: Session, job_id: str) -> list[tuple[str, int]]:
    """`requeue_expired` for all shards of one job."""
    return _requeue(session, _expired().where(ShardRow.job_id == job_id))


def collect_wake_ups(
    session: Session,
    *,
    older_than_seconds: float,
    limit: int,
    max_attempts: int,
    worker_kinds: Sequence[WorkerKind] | None,
) -> list[WakeUp]:
    """Mark waiting shards as enqueued now, and return the wake-up messages of their jobs.

    Takes running jobs whose last message about a shard was never sent or is older than `older_than_seconds`. A shard
    with `max_attempts` attempts is left to the job's own worker.
    """
    before = now(plus_seconds=-older_than_seconds)
    due = session.execute(
        select(JobRow.id, JobRow.worker_kind)
        .join(ShardRow, ShardRow.job_id == JobRow.id)
        .where(ShardRow.state == ShardState.WAITING, ShardRow.attempt < max_attempts)
        .where(func.coalesce(ShardRow.enqueued_at, before) <= before)
        .where(RUNNING, JobRow.cancel_requested_at.is_(None), is_served(worker_kinds))
        .distinct()
        .limit(limit)
    )
    wake_ups = [WakeUp(job_id=job_id, worker_kind=worker_kind) for job_id, worker_kind in due]
    for wake_up in wake_ups:
        session.execute(
            update(ShardRow)
            .where(ShardRow.job_id == wake_up.job_id, ShardRow.state == ShardState.WAITING)
            .values(enqueued_at=now())
        )
    return wake_ups


def delete_orphaned(session: Session) -> None:
    """Delete the shards of finished jobs: a version that knows no shards may have finished them."""
    finished = select(JobRow.id).where(JobRow.id == ShardRow.job_id, JobRow.status.in_(TERMINAL))
    session.execute(delete(ShardRow).where(finished.exists()))


def _expired() -> _ExpiredShards:
    return select(ShardRow.job_id, ShardRow.number, ShardRow.lease_token, ShardRow.worker).where(
        ShardRow.state == ShardState.RUNNING, ShardRow.lease_expires_at < now()
    )


def _requeue(session: Session, expired: _ExpiredShards) -> list[tuple[str, int]]:
    """Locks the row of each job, then checks again that the shard's lease has expired."""
    requeued = []
    for job_id, number, token, worker in session.execute(expired).all():
        lock_job(session, job_id)
        lost = session.scalars(
            update(ShardRow)
            .where(is_shard(job_id, number), ShardRow.lease_token == token, ShardRow.lease_expires_at < now())
            .where(ShardRow.state == ShardState.RUNNING)
            .values(**NO_LEASE, state=ShardState.WAITING, enqueued_at=None)
            .returning(ShardRow.number)
        ).one_or_none()
        if lost is not None:
            write_news(session, job_id, ShardNews.LOST, number=number, worker=worker)
            requeued.append((job_id, number))
    return requeued
