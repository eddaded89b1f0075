"""Shards of a running job as workers see them that lend a hand: taken, renewed, done, given back.

Every write is conditional on the token of the visit, so that whoever was thought lost cannot write over a successor.
Only the row of the shard is written, never that of the job.
"""

from collections.abc import Mapping, Sequence
from uuid import uuid4

from sqlalchemy import ColumnElement, and_, select, update

from replaceme_core.admission.worker_kind import WorkerKind
from replaceme_core.errors import LeaseLost
from replaceme_core.jobs.clock import now
from replaceme_core.jobs.leases import storable
from replaceme_core.jobs.records import ShardClaim, ShardPlan
from replaceme_core.jobs.scheduling.next_job import QUEUED, RUNNING, is_due, is_served
from replaceme_core.jobs.session import LedgerSession
from replaceme_core.jobs.shards.planning import NOBODY, is_shard, tell
from replaceme_core.jobs.states import JobStatus, ShardState
from replaceme_core.jobs.tables import JobRow, ShardRow
from replaceme_core.jobs.transitions import locked
from replaceme_core.runner.messages import ShardAnswer

_MOST_PLANS = 16
_ACTIVE = (JobStatus.QUEUED, JobStatus.RUNNING)
_WAITING: ColumnElement[bool] = ShardRow.state == ShardState.WAITING


class ShardLeases:
    """The part of `Jobs` for workers that take shards of others' jobs."""

    def __init__(self, session: LedgerSession) -> None:
        self._session = session

    def open_plans(self, *, max_attempts: int, worker_kinds: Sequence[WorkerKind] | None = None) -> list[ShardPlan]:
        """Running jobs that the worker serves, with shards that wait; the highest priority and the oldest first.

        A shard that was lost `max_attempts` times is left to the job's own worker.
        """
        found = self._session.execute(
            select(ShardRow.job_id, ShardRow.plan)
            .join(JobRow, JobRow.id == ShardRow.job_id)
            .where(_WAITING, ShardRow.attempt < max_attempts)
            .where(RUNNING, JobRow.cancel_requested_at.is_(None), is_served(worker_kinds))
            .group_by(ShardRow.job_id, ShardRow.plan, JobRow.priority, JobRow.number)
            .order_by(JobRow.priority.desc(), JobRow.number)
            .limit(_MOST_PLANS)
        )
        return [ShardPlan(job_id=job_id, plan=plan) for job_id, plan in found]

    def has_startable(self, *, worker_kinds: Sequence[WorkerKind] | None = None) -> bool:
        """Whether a queued job that the worker serves could start now: jobs come before shards."""
        waiting = select(JobRow.number).where(QUEUED, is_due(), is_served(worker_kinds)).limit(1)
        return self._session.scalars(waiting).one_or_none() is not None

    def claim_shard(
        self, plan: ShardPlan, *, worker: str, lease_seconds: float, max_attempts: int
    ) -> ShardClaim | None:
        """waiting -> running for the first shard that is free; attempt + 1. `None`: there is none (any more)."""
        token = uuid4().hex
        return self._take_free(plan, token, worker=worker, lease_seconds=lease_seconds, max_attempts=max_attempts)

    def renew_shard(self, claim: ShardClaim, *, lease_seconds: float) -> bool:
        """Extend the lease. True: the job wants no shards any more. Raises `LeaseLost` if it was taken back."""
        values = {"lease_expires_at": now(plus_seconds=lease_seconds)}
        if not self._write_shard(claim, values, ShardRow.state == ShardState.RUNNING):
            raise _lost(claim)
        return self.is_unwanted(claim)

    def is_unwanted(self, claim: ShardClaim) -> bool:
        """Whether the job is over, or is to be cancelled."""
        wants = select(JobRow.id).where(
            JobRow.id == claim.job_id, JobRow.status.in_(_ACTIVE), JobRow.cancel_requested_at.is_(None)
        )
        return self._session.scalars(wants).one_or_none() is None

    def finish_shard(self, claim: ShardClaim) -> None:
        """running -> done; saying it again changes nothing. Raises `LeaseLost` if it was taken back."""
        states = ShardRow.state.in_((ShardState.RUNNING, ShardState.DONE))
        if not self._write_shard(claim, {"state": ShardState.DONE, "lease_expires_at": None}, states):
            raise _lost(claim)

    def next_shard(
        self, claim: ShardClaim, *, worker: str, lease_seconds: float, max_attempts: int
    ) -> ShardClaim | None:
        """Another shard of the same plan, under the same token; `None`: there is none for this visit."""
        held = self._session.execute(
            select(ShardRow.number, ShardRow.attempt).where(
                ShardRow.job_id == claim.job_id,
                ShardRow.lease_token == claim.token,
                ShardRow.state == ShardState.RUNNING,
            )
        ).first()
        if held is not None:  # it was given, and the end of that transaction was not seen
            return ShardClaim(
                job_id=claim.job_id, plan=claim.plan, token=claim.token, number=held.number, attempt=held.attempt
            )
        plan = ShardPlan(job_id=claim.job_id, plan=claim.plan)
        return self._take_free(plan, claim.token, worker=worker, lease_seconds=lease_seconds, max_attempts=max_attempts)

    def count_shards(self, job_id: str, *, number: int | None = None) -> ShardAnswer:
        """How many there are and are done, beside the `number` to compute next."""
        states = self._session.scalars(select(ShardRow.state).where(ShardRow.job_id == job_id)).all()
        return ShardAnswer(number=number, done=states.count(ShardState.DONE), count=len(states))

    def release_shard(self, claim: ShardClaim, *, reason: str, counts: bool = True) -> None:
        """running -> waiting for what this visit holds, if it still does. `counts`: as an attempt."""
        locked(self._session, claim.job_id)
        given = self._session.scalars(
            update(ShardRow)
            .where(ShardRow.job_id == claim.job_id, ShardRow.lease_token == claim.token)
            .where(ShardRow.state == ShardState.RUNNING)
            .values(
                **NOBODY,
                state=ShardState.WAITING,
                enqueued_at=None,
                attempt=ShardRow.attempt - (0 if counts else 1),
            )
            .returning(ShardRow.number)
        ).all()
        for number in given:
            tell(self._session, claim.job_id, "given back", number=number, reason=storable(reason))

    def _take_free(
        self, plan: ShardPlan, token: str, *, worker: str, lease_seconds: float, max_attempts: int
    ) -> ShardClaim | None:
        number = self._session.scalars(
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
        attempt = self._session.scalars(
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

    def _write_shard(self, claim: ShardClaim, values: Mapping[str, object], *where: ColumnElement[bool]) -> bool:
        held = and_(is_shard(claim.job_id, claim.number), ShardRow.lease_token == claim.token)
        written = update(ShardRow).where(held, *where).values(**values).returning(ShardRow.number)
        return self._session.scalars(written).one_or_none() is not None


def _lost(claim: ShardClaim) -> LeaseLost:
    return LeaseLost(f"shard {claim.number} of job {claim.job_id} is no longer held")
