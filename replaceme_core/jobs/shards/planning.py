"""Shards of a running job as its own worker and the sweep see them: planned, taken, done, taken back.

The row says whose turn it is; the result itself is a file, which the runners check. What other workers do with shards
is in `shard_leases.py`. Whoever writes both the row of a job and that of a shard locks the job's first.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from sqlalchemy import ColumnElement, Select, and_, delete, func, insert, not_, or_, select, update

from replaceme_core.admission.worker_kind import WorkerKind
from replaceme_core.jobs.clock import now
from replaceme_core.jobs.leases import hold
from replaceme_core.jobs.records import Claim, WakeUp
from replaceme_core.jobs.scheduling.next_job import RUNNING, is_served
from replaceme_core.jobs.session import LedgerSession
from replaceme_core.jobs.states import TERMINAL, EventType, JobStatus, ShardState
from replaceme_core.jobs.tables import JobRow, ShardRow
from replaceme_core.jobs.transitions import change, locked
from replaceme_core.runner.messages import ShardAnswer, ShardsPlanned, Stage

NOBODY: Mapping[str, object] = {"lease_token": None, "lease_expires_at": None, "worker": None}


def tell(session: LedgerSession, job_id: str, news: str, **data: object) -> None:
    """A line in the history of a job that runs: news of its shards, within an event of its present stage.

    Not an event of a type of its own, which the version before could not read.
    """
    shards: dict[str, object] = {"news": news, **data}
    stage = locked(session, job_id).stage or Stage.RESOLVE
    event = (EventType.STAGE, {"stage": stage.value, "shards": shards})
    change(session, job_id, JobRow.status == JobStatus.RUNNING, values={}, events=[event])


def is_shard(job_id: str, number: int) -> ColumnElement[bool]:
    return and_(ShardRow.job_id == job_id, ShardRow.number == number)


class Sharding:
    """The part of `Jobs` that keeps the shards of jobs."""

    def __init__(self, session: LedgerSession) -> None:
        self._session = session

    def plan_shards(self, claim: Claim, planned: ShardsPlanned) -> WorkerKind | None:
        """From now on there are these shards; returns the workers that may take them. Raises `LeaseLost`.

        What other workers still compute under the same plan, for an earlier attempt at the job, stays theirs.
        """
        job = hold(self._session, claim)
        stays = and_(
            ShardRow.plan == planned.plan,
            ShardRow.state == ShardState.RUNNING,
            ShardRow.lease_expires_at.is_not(None),
            ShardRow.number < planned.count,
            ShardRow.number.not_in(planned.done),
        )
        self._session.execute(delete(ShardRow).where(ShardRow.job_id == claim.job_id, not_(stays)))
        taken = set(self._session.scalars(select(ShardRow.number).where(ShardRow.job_id == claim.job_id)))
        rows = [
            {"number": number, "state": ShardState.DONE if number in planned.done else ShardState.WAITING}
            for number in range(planned.count)
            if number not in taken
        ]
        if rows:
            common = {"job_id": claim.job_id, "plan": planned.plan, "attempt": 0, "enqueued_at": now()}
            self._session.execute(insert(ShardRow).values(**common), rows)
        tell(self._session, claim.job_id, "planned", count=planned.count, done=len(planned.done))
        return job.worker_kind

    def take_shard(self, claim: Claim, *, worker: str, finished: Collection[int] = ()) -> ShardAnswer:
        """A shard for the job's own worker, which has the results of those `finished`. Raises `LeaseLost`.

        What others have lost is taken back first, so that no job waits for a sweep.
        """
        hold(self._session, claim)
        of_job, mine = ShardRow.job_id == claim.job_id, ShardRow.lease_token == claim.token
        if finished:
            done = update(ShardRow).where(of_job, mine, ShardRow.number.in_(finished))
            self._session.execute(done.values(state=ShardState.DONE))
        self._take_back_shards(_lapsed().where(of_job))
        free = or_(
            ShardRow.state == ShardState.WAITING,
            and_(ShardRow.state == ShardState.RUNNING, mine),  # it was given, and the answer was lost on its way
        )
        number = self._session.scalars(
            select(ShardRow.number)
            .where(of_job, free)
            .order_by(ShardRow.number)
            .limit(1)
            .with_for_update(skip_locked=True)
        ).one_or_none()
        if number is not None:
            values = {"state": ShardState.RUNNING, "lease_token": claim.token, "lease_expires_at": None}
            self._session.execute(
                update(ShardRow)
                .where(is_shard(claim.job_id, number))
                .values(**values, worker=worker, attempt=ShardRow.attempt + 1)
            )
        return self._standing_with(claim.job_id, number)

    def requeue_expired_shards(self, *, limit: int) -> list[tuple[str, int]]:
        """Shards whose worker fell silent wait again; returns their jobs and numbers."""
        return self._take_back_shards(_lapsed().order_by(ShardRow.lease_expires_at).limit(limit))

    def shards_due_for_wake_up(
        self,
        *,
        older_than_seconds: float,
        limit: int,
        max_attempts: int,
        worker_kinds: Sequence[WorkerKind] | None = None,
    ) -> list[WakeUp]:
        """Running jobs with shards that wait and whose last message is older than that; they count as rung now.

        A shard that was lost `max_attempts` times is left to the job's own worker.
        """
        before = now(plus_seconds=-older_than_seconds)
        due = self._session.execute(
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
            waiting = and_(ShardRow.job_id == wake_up.job_id, ShardRow.state == ShardState.WAITING)
            self._session.execute(update(ShardRow).where(waiting).values(enqueued_at=now()))
        return wake_ups

    def forget_shards(self) -> None:
        """Remove those of jobs that are over: a version that knows no shards may have ended them."""
        over = select(JobRow.id).where(JobRow.id == ShardRow.job_id, JobRow.status.in_(TERMINAL))
        self._session.execute(delete(ShardRow).where(over.exists()))

    def _take_back_shards(self, lapsed: Select[str, int, str | None, str | None]) -> list[tuple[str, int]]:
        taken = []
        for job_id, number, token, worker in self._session.execute(lapsed).all():
            locked(self._session, job_id)
            lost = self._session.scalars(
                update(ShardRow)
                .where(is_shard(job_id, number), ShardRow.lease_token == token, ShardRow.lease_expires_at < now())
                .where(ShardRow.state == ShardState.RUNNING)
                .values(**NOBODY, state=ShardState.WAITING, enqueued_at=None)
                .returning(ShardRow.number)
            ).one_or_none()
            if lost is not None:
                tell(self._session, job_id, "lost", number=number, worker=worker)
                taken.append((job_id, number))
        return taken

    def _standing_with(self, job_id: str, number: int | None) -> ShardAnswer:
        rows = self._session.execute(
            select(ShardRow.state, ShardRow.worker, ShardRow.attempt).where(ShardRow.job_id == job_id)
        ).all()
        done = [row for row in rows if row.state is ShardState.DONE]
        if len(done) == len(rows):
            by = Counter(row.worker for row in done if row.worker is not None)
            tell(self._session, job_id, "done", count=len(done), workers=dict(by))
        return ShardAnswer(number=number, done=len(done), count=len(rows))


def _lapsed() -> Select[str, int, str | None, str | None]:
    return select(ShardRow.job_id, ShardRow.number, ShardRow.lease_token, ShardRow.worker).where(
        ShardRow.state == ShardState.RUNNING, ShardRow.lease_expires_at < now()
    )
