"""The job's own worker and its shards: it plans them, computes them one after the other, and learns what is left."""

from collections import Counter
from collections.abc import Collection

from sqlalchemy import and_, delete, insert, not_, or_, select, update
from sqlalchemy.orm import Session

from replaceme_core.hardware import WorkerKind
from replaceme_core.ledger.attempts.leases import lock_claimed
from replaceme_core.ledger.clock import now
from replaceme_core.ledger.records import Claim
from replaceme_core.ledger.shards.rows import is_shard, write_news
from replaceme_core.ledger.shards.sweep import requeue_expired_of
from replaceme_core.ledger.shards.tables import ShardRow
from replaceme_core.ledger.states import ShardNews, ShardState
from replaceme_core.runner.messages import ShardAnswer, ShardsPlanned


def plan(session: Session, claim: Claim, planned: ShardsPlanned) -> WorkerKind | None:
    """Replace the job's shards by those of the plan; returns the kind of workers that may take them.

    Locks the job's row first. A shard of the same plan that another worker still computes, for an earlier attempt at
    the job, stays with that worker. Raises `LeaseLost`.
    """
    job = lock_claimed(session, claim)
    stays = and_(
        ShardRow.plan == planned.plan,
        ShardRow.state == ShardState.RUNNING,
        ShardRow.lease_expires_at.is_not(None),
        ShardRow.number < planned.count,
        ShardRow.number.not_in(planned.done),
    )
    session.execute(delete(ShardRow).where(ShardRow.job_id == claim.job_id, not_(stays)))
    taken = set(session.scalars(select(ShardRow.number).where(ShardRow.job_id == claim.job_id)))
    rows = [
        {"number": number, "state": ShardState.DONE if number in planned.done else ShardState.WAITING}
        for number in range(planned.count)
        if number not in taken
    ]
    if rows:
        common = {"job_id": claim.job_id, "plan": planned.plan, "attempt": 0, "enqueued_at": now()}
        session.execute(insert(ShardRow).values(**common), rows)
    write_news(session, claim.job_id, ShardNews.PLANNED, count=planned.count, done=len(planned.done))
    return job.worker_kind


def take_next(session: Session, claim: Claim, *, worker: str, finished: Collection[int]) -> ShardAnswer:
    """Mark `finished` as done and give the job's own worker the next waiting shard. Raises `LeaseLost`.

    Locks the job's row first. Shards whose lease has expired are requeued before, so that no job waits for a sweep.
    """
    lock_claimed(session, claim)
    of_job, own = ShardRow.job_id == claim.job_id, ShardRow.lease_token == claim.token
    if finished:
        done = update(ShardRow).where(of_job, own, ShardRow.number.in_(finished))
        session.execute(done.values(state=ShardState.DONE))
    requeue_expired_of(session, claim.job_id)
    # a running shard with this token was taken before, and the reply was lost on its way
    free = or_(ShardRow.state == ShardState.WAITING, and_(ShardRow.state == ShardState.RUNNING, own))
    number = session.scalars(
        select(ShardRow.number).where(of_job, free).order_by(ShardRow.number).limit(1).with_for_update(skip_locked=True)
    ).one_or_none()
    if number is not None:
        values = {"state": ShardState.RUNNING, "lease_token": claim.token, "lease_expires_at": None}
        session.execute(
            update(ShardRow)
            .where(is_shard(claim.job_id, number))
            .values(**values, worker=worker, attempt=ShardRow.attempt + 1)
        )
    return _answer(session, claim.job_id, number)


def _answer(session: Session, job_id: str, number: int | None) -> ShardAnswer:
    """The shard to compute and how many are done. Writes an event when all are."""
    rows = session.execute(
        select(ShardRow.state, ShardRow.worker, ShardRow.attempt).where(ShardRow.job_id == job_id)
    ).all()
    done = [row for row in rows if row.state is ShardState.DONE]
    if len(done) == len(rows):
        workers = Counter(row.worker for row in done if row.worker is not None)
        write_news(session, job_id, ShardNews.DONE, count=len(done), workers=dict(workers))
    return ShardAnswer(number=number, done=len(done), count=len(rows))
