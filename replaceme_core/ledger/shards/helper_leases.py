"""Shards as computed by other workers than the job's own: claimed, renewed, finished, released.

Every write is conditional on the token of the claim, so that a worker whose lease has expired cannot write over its
successor. Apart from `release`, these write the row of the shard only, never that of the job.
"""

from collections.abc import Mapping, Sequence
from uuid import uuid4

from sqlalchemy import ColumnElement, and_, select, update
from sqlalchemy.orm import Session

from replaceme_core.errors import LeaseLost
from replaceme_core.hardware import WorkerKind
from replaceme_core.ledger.clock import now
from replaceme_core.ledger.records import ShardClaim, ShardPlan
from replaceme_core.ledger.scheduling.eligibility import RUNNING, is_served
from replaceme_core.ledger.shards.rows import is_shard, write_news
from replaceme_core.ledger.shards.tables import ShardRow
from replaceme_core.ledger.states import ACTIVE, ShardNews, ShardState
from replaceme_core.ledger.tables import JobRow
from replaceme_core.ledger.transitions import NO_LEASE, lock_job, storable

_MAX_PLANS = 16
_WAITING: ColumnElement[bool] = ShardRow.state == ShardState.WAITING


def open_plans(session: Session, *, max_attempts: int, worker_kinds: Sequence[WorkerKind] | None) -> list[ShardPlan]:
    """Running jobs for `worker_kinds` with waiting shards; the highest priority and then the oldest job first.

    A shard with `max_attempts` attempts is left to the job's own worker.
    """
    found = session.execute(
        select(ShardRow.job_id, ShardRow.plan)
        .join(JobRow, JobRow.id == ShardRow.job_id)
        .where(_WAITING, ShardRow.attempt < max_attempts)
        .where(RUNNING, JobRow.cancel_requested_at.is_(None), is_served(worker_kinds))
        .group_by(ShardRow.job_id, ShardRow.plan, JobRow.priority, JobRow.number)
        .order_by(JobRow.priority.desc(), JobRow.number)
        .limit(_MAX_PLANS)
    )
    return [ShardPlan(job_id=job_id, plan=plan) for job_id, plan in found]


def claim(
    session: Session, plan: ShardPlan, *, worker: str, lease_seconds: float, max_attempts: int
) -> ShardClaim | None:
    """waiting -> running for the first waiting shard, attempt + 1; `None` if there is none."""
    token = uuid4().hex
    return _claim_first(session, plan, token, worker=worker, lease_seconds=lease_seconds, max_attempts=max_attempts)


def claim_next(
    session: Session, previous: ShardClaim, *, worker: str, lease_seconds: float, max_attempts: int
) -> ShardClaim | None:
    """Claim another shard of the same plan with the same token; `None` if there is none."""
    held = session.execute(
        select(ShardRow.number, ShardRow.attempt).where(
            ShardRow.job_id == previous.job_id,
            ShardRow.lease_token == previous.token,
            ShardRow.state == ShardState.RUNNING,
        )
    ).first()
    if held is not None:  # claimed before, in a transaction whose commit this worker did not see
        return ShardClaim(
            job_id=previous.job_id,
            plan=previous.plan,
            token=previous.token,
            number=held.number,
            attempt=held.attempt,
        )
    plan = ShardPlan(job_id=previous.job_id, plan=previous.plan)
    return _claim_first(
        session, plan, previous.token, worker=worker, lease_seconds=lease_seconds, max_attempts=max_attempts
    )


def renew(session: Session, claim: ShardClaim, *, lease_seconds: float) -> bool:
    """Extend the lease; returns `is_obsolete`. Raises `LeaseLost`."""
    values = {"lease_expires_at": now(plus_seconds=lease_seconds)}
    if not _update_claimed(session, claim, values, ShardRow.state == ShardState.RUNNING):
        raise _lost(claim)
    return is_obsolete(session, claim)


def is_obsolete(session: Session, claim: ShardClaim) -> bool:
    """Whether the job no longer needs the shard: it is finished, or a cancel was requested."""
    needs_it = select(JobRow.id).where(
        JobRow.id == claim.job_id, JobRow.status.in_(ACTIVE), JobRow.cancel_requested_at.is_(None)
    )
    return session.scalars(needs_it).one_or_none() is None


def finish(session: Session, claim: ShardClaim) -> None:
    """running -> done. A second call changes nothing. Raises `LeaseLost`."""
    states = ShardRow.state.in_((ShardState.RUNNING, ShardState.DONE))
    if not _update_claimed(session, claim, {"state": ShardState.DONE, "lease_expires_at": None}, states):
        raise _lost(claim)


def release(session: Session, claim: ShardClaim, *, reason: str, counts: bool) -> None:
    """running -> waiting for the shard that this token still holds, if any. Locks the job's row first."""
    lock_job(session, claim.job_id)
    released = session.scalars(
        update(ShardRow)
        .where(ShardRow.job_id == claim.job_id, ShardRow.lease_token == claim.token)
        .where(ShardRow.state == ShardState.RUNNING)
        .values(
            **NO_LEASE,
            state=ShardState.WAITING,
            enqueued_at=None,
            attempt=ShardRow.attempt - (0 if counts else 1),
        )
        .returning(ShardRow.number)
    ).all()
    for number in released:
        write_news(session, claim.job_id, ShardNews.RELEASED, number=number, reason=storable(reason))


def _claim_first(
    session: Session, plan: ShardPlan, token: str, *, worker: str, lease_seconds: float, max_attempts: int
) -> ShardClaim | None:
    number = session.scalars(
        select(ShardRow.number)
        .join(JobRow, JobRow.id == ShardRow.job_id)
        .where(ShardRow.job_id == plan.job_id, ShardRow.plan == plan.plan, _WAITING)
        .where(ShardRow.attempt < max_attempts, RUNNING, JobRow.cancel_requested_at.is_(None))
        .order_by(ShardRow.number)
        .limit(1)
        .with_for_update(skip_locked=True, of=ShardRow)
    ).one_or_none()
    if number is None:
        return None
    attempt = session.scalars(
        update(ShardRow)
        .where(is_shard(plan.job_id, number), _WAITING)
        .values(
            state=ShardState.RUNNING,
            attempt=ShardRow.attempt + 1,
            lease_token=token,
            lease_expires_at=now(plus_seconds=lease_seconds),
            worker=worker,
        )
        .returning(ShardRow.attempt)
    ).one()
    return ShardClaim(job_id=plan.job_id, number=number, plan=plan.plan, token=token, attempt=attempt)


def _update_claimed(
    session: Session, claim: ShardClaim, values: Mapping[str, object], *where: ColumnElement[bool]
) -> bool:
    held = and_(is_shard(claim.job_id, claim.number), ShardRow.lease_token == claim.token)
    written = update(ShardRow).where(held, *where).values(**values).returning(ShardRow.number)
    return session.scalars(written).one_or_none() is not None


def _lost(claim: ShardClaim) -> LeaseLost:
    return LeaseLost(f"the lease on shard {claim.number} of job {claim.job_id} is lost")
