"""The next job to start: the highest priority, then the owner with the fewest running jobs, then the owner whose last
start is the longest ago, then the oldest job.

So within one priority no owner's hundred jobs delay another owner's single job, even with a single worker. Each
statement of the choice is answered by an index; its cost grows with the number of owners, not of jobs.

The position of a queued job follows from the same rules. It has to count the jobs ahead, up to `MAX_COUNTED` of them.
So the whole queue is read once (`QueueSnapshot`), for a process that is asked about many jobs within a moment.
"""

import statistics
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from heapq import heapify, heappop, heapreplace

from sqlalchemy import ColumnElement, Row, ScalarSelect, Select, and_, func, literal, or_, select, true, union_all
from sqlalchemy.orm import Session, aliased

from replaceme_core.hardware import WorkerKind
from replaceme_core.ledger.database import lock_until_commit, now
from replaceme_core.ledger.reading import JobSnapshot
from replaceme_core.ledger.states import JobStatus
from replaceme_core.ledger.tables import ApiKeyRow, JobRow
from replaceme_core.request.spec import HIGHEST_PRIORITY
from replaceme_core.shapes import QueuePosition

# Written into the statement and not passed as a parameter: a plan for any status cannot use a partial index on one.
QUEUED: ColumnElement[bool] = JobRow.status == literal(JobStatus.QUEUED, JobRow.status.type, literal_execute=True)
RUNNING: ColumnElement[bool] = JobRow.status == literal(JobStatus.RUNNING, JobRow.status.type, literal_execute=True)


def is_due() -> ColumnElement[bool]:
    """Neither waiting after a lost attempt nor past its deadline.

    Written so that no index is used for it: nearly all jobs are due.
    """
    return and_(
        func.coalesce(JobRow.not_before, now()) <= now(),
        func.coalesce(JobRow.deadline_at, now(plus_seconds=1)) > now(),
    )


def is_served(worker_kinds: Sequence[WorkerKind] | None) -> ColumnElement[bool]:
    """Jobs for workers of `worker_kinds`, and jobs for any worker; `None` means all kinds."""
    return true() if worker_kinds is None else or_(JobRow.worker_kind.is_(None), JobRow.worker_kind.in_(worker_kinds))


def keys_at_limit(session: Session) -> set[str]:
    """The ids of keys of which as many jobs are running as may."""
    counted = select(JobRow.key_id, func.count()).where(RUNNING, JobRow.key_id.is_not(None)).group_by(JobRow.key_id)
    running = {key_id: number for key_id, number in session.execute(counted) if key_id is not None}
    if not running:
        return set()
    limits = session.execute(select(ApiKeyRow.id, ApiKeyRow.running_jobs).where(ApiKeyRow.id.in_(running)))
    return {key_id for key_id, most in limits if most and running[key_id] >= most}


def is_below_limit(full: Collection[str]) -> tuple[ColumnElement[bool], ...]:
    """The condition for jobs of other keys than `full`; empty if there are none, so that plans stay as they are."""
    return (or_(JobRow.key_id.is_(None), JobRow.key_id.not_in(full)),) if full else ()


def has_place(session: Session, job: JobRow) -> bool:
    """Whether one more job of its key may run. Two transactions that ask for one key wait for each other."""
    if job.key_id is None:
        return True
    most = session.scalars(select(ApiKeyRow.running_jobs).where(ApiKeyRow.id == job.key_id)).one_or_none()
    if not most:
        return True
    lock_until_commit(session, f"running jobs of {job.key_id}")
    running = select(func.count()).select_from(JobRow).where(RUNNING, JobRow.key_id == job.key_id)
    return session.scalars(running).one() < most


Conditions = tuple[ColumnElement[bool], ...]
Subqueue = Conditions
"""The condition for queued jobs of one worker kind, so that an index finds the first of them; empty for all jobs."""


def lock_next_job(session: Session, *, worker_kinds: Sequence[WorkerKind] | None = None) -> JobRow | None:
    """The row of the queued job to start next, locked; `None` if no job can start. `worker_kinds`: see `is_served`.

    Jobs of a key are passed over while as many of them run as may. On PostgreSQL rows that another worker has locked
    are skipped. Two workers that ask at the very same moment do not yet see each other's job as running, except for
    that limit.
    """
    full = keys_at_limit(session)
    while (row := _lock_first(session, worker_kinds, is_below_limit(full))) is not None:
        if has_place(session, row):
            return row
        assert row.key_id is not None  # only a key has a limit
        full.add(row.key_id)
    return None


def _lock_first(session: Session, worker_kinds: Sequence[WorkerKind] | None, allowed: Conditions) -> JobRow | None:
    subqueues = _subqueues(worker_kinds)
    for priority in _priorities(session, subqueues):
        for owner, index in _owners(session, priority, subqueues, allowed):
            row = session.scalars(
                select(JobRow)
                .where(QUEUED, *subqueues[index], JobRow.priority == priority, JobRow.owner == owner)
                .where(is_due(), *allowed)
                .order_by(*_kind_first(subqueues[index]), JobRow.number)
                .limit(1)
                .with_for_update(skip_locked=True, key_share=True)
            ).one_or_none()
            if row is not None:
                return row
    return None


def last_start(owner: ColumnElement[str]) -> ScalarSelect[datetime | None]:
    """When a job of this owner was last started for the first time; null if none ever was."""
    return (
        select(JobRow.started_at)
        .where(JobRow.owner == owner, JobRow.started_at.is_not(None))
        .order_by(JobRow.started_at.desc())
        .limit(1)
        .scalar_subquery()
    )


def _subqueues(worker_kinds: Sequence[WorkerKind] | None) -> list[Subqueue]:
    return (
        [()]
        if worker_kinds is None
        else [(JobRow.worker_kind.is_(None),), *((JobRow.worker_kind == worker_kind,) for worker_kind in worker_kinds)]
    )


def _kind_first(subqueue: Subqueue) -> tuple[ColumnElement[WorkerKind | None], ...]:
    """The first column of an ORDER BY, for the index that begins with the worker kind: where the kind is only compared
    with NULL, PostgreSQL would read another index, with the jobs of all kinds."""
    return (JobRow.worker_kind.expression,) if subqueue else ()


def _priorities(session: Session, subqueues: Sequence[Subqueue]) -> list[int]:
    """The priorities of queued jobs, the highest first."""
    every = (select(literal(priority).label("priority")) for priority in range(HIGHEST_PRIORITY + 1))
    each = union_all(*every).subquery("priorities")
    # One look into the index for each priority: for the highest alone, SQLite would sort the whole queue. The ORDER BY
    # names the index: without it PostgreSQL may search another one, through the whole queue.
    waiting = (
        select(JobRow.owner)
        .where(QUEUED, *subqueue, JobRow.priority == each.c.priority)
        .order_by(*_kind_first(subqueue), JobRow.owner)
        .limit(1)
        .scalar_subquery()
        for subqueue in subqueues
    )
    query = select(each.c.priority).where(or_(*(found.is_not(None) for found in waiting)))
    return list(session.scalars(query.order_by(each.c.priority.desc())))


def _owners(
    session: Session, priority: int, subqueues: Sequence[Subqueue], allowed: Conditions
) -> list[tuple[str, int]]:
    """Owners of jobs of this priority that can start, in the order in which they are served, each with the index of
    the subqueue.

    An owner with jobs in several subqueues appears once for each, the one with the oldest job first.
    """
    each = (_owners_in(subqueue, index, priority, allowed) for index, subqueue in enumerate(subqueues))
    found = union_all(*each).subquery()
    query = (
        select(found.c.owner, found.c.subqueue)
        .where(found.c.oldest.is_not(None))
        .order_by(found.c.running, found.c.served.nulls_first(), found.c.oldest)
    )
    return [(owner, index) for owner, index in session.execute(query)]


def _owners_in(
    subqueue: Subqueue, index: int, priority: int, allowed: Conditions
) -> Select[str, int, int | None, int, datetime | None]:
    waiting = (QUEUED, *subqueue, JobRow.priority == priority)

    def first(*where: ColumnElement[bool]) -> ScalarSelect[str]:
        found = select(JobRow.owner).where(*waiting, *where).order_by(*_kind_first(subqueue), JobRow.owner)
        return found.limit(1).scalar_subquery()

    # a recursive query from owner to owner through the index, instead of over all their jobs
    owners = select(first().label("owner")).cte(f"owners_{index}", recursive=True)
    before = aliased(owners)
    owners = owners.union_all(select(first(JobRow.owner > before.c.owner)).where(before.c.owner.is_not(None)))
    oldest = (
        select(JobRow.number)
        .where(*waiting, JobRow.owner == owners.c.owner, is_due(), *allowed)
        .order_by(*_kind_first(subqueue), JobRow.number)
        .limit(1)
        .scalar_subquery()
    )
    running = select(func.count()).where(RUNNING, JobRow.owner == owners.c.owner).scalar_subquery()
    return select(
        owners.c.owner,
        literal(index).label("subqueue"),
        oldest.label("oldest"),
        running.label("running"),
        last_start(owners.c.owner).label("served"),
    )


MAX_COUNTED = 10_000
RECENT_JOBS = 20


_QueuedJob = Row[str, int, str, int, datetime | None, WorkerKind | None]  # read by the thousand, so no record of it
_QUEUED_JOBS = select(
    JobRow.id, JobRow.priority, JobRow.owner, JobRow.number, JobRow.not_before, JobRow.worker_kind
).where(QUEUED)
Running = Mapping[WorkerKind | None, tuple[int, float | None]]
"""How many jobs of each kind are running, and in how many seconds the first of them ends."""


def _compete(kind: WorkerKind | None, other: WorkerKind | None) -> bool:
    """Whether jobs for workers of these kinds wait for the same ones; those for any worker wait for all."""
    return kind is None or other in (None, kind)


@dataclass(frozen=True, kw_only=True)
class QueueSnapshot:
    """The queue at the time `at`, by the database's clock. `duration` is the usual time of a job in seconds."""

    at: datetime
    queued: Mapping[str, _QueuedJob]
    counted_from: int
    """The lowest priority whose jobs are all in `queued`. No position below it is known."""
    running: Mapping[str, int]
    running_by_kind: Running
    last_starts: Mapping[str, datetime | None]
    duration: float | None

    def position_of(self, job: JobSnapshot) -> QueuePosition | None:
        """Position and estimated start of `job`; `None` if it was not queued at that time."""
        if job.priority < self.counted_from:
            return QueuePosition(position=None, estimated_start_at=None)
        found = self.queued.get(job.id)
        if found is None:
            return None
        position, start = self._positions[found.worker_kind][found.id], None
        if self.duration is not None:
            competing = [of for kind, of in self.running_by_kind.items() if _compete(found.worker_kind, kind)]
            running = sum(count for count, _ in competing)
            half_done = self.duration / 2 / running if running else 0.0  # as they are on average
            first_end = min((end for _, end in competing if end is not None), default=half_done)
            start = self.at + timedelta(seconds=first_end + self.duration * (position - 1) / max(running, 1))
            start = start if found.not_before is None else max(start, found.not_before)
            # to the minute: it is no more exact, and a client that polls need not get each second of it
            start = start.replace(second=0, microsecond=0) + timedelta(minutes=1)
        return QueuePosition(position=position, estimated_start_at=start)

    def including(self, session: Session, job_ids: Collection[str]) -> "QueueSnapshot":
        """The same queue with jobs that have come into it since."""
        these = JobRow.id.in_(job_ids)
        later = {row.id: row for row in session.execute(_QUEUED_JOBS.where(these))}
        last_starts = {**self.last_starts, **_last_starts(session, these)}
        return replace(self, queued={**self.queued, **later}, last_starts=last_starts)

    @cached_property
    def _positions(self) -> Mapping[WorkerKind | None, Mapping[str, int]]:
        """By the kind of worker and the id, among the jobs that compete with one of this kind."""
        queued = self.queued.values()
        return {
            kind: self._order([job for job in queued if _compete(kind, job.worker_kind)])
            for kind in {job.worker_kind for job in queued}
        }

    def _order(self, jobs: Sequence[_QueuedJob]) -> dict[str, int]:
        """When each of `jobs` starts: 1, 2, 3 ... by its id, one after the other, as if none ended meanwhile."""
        waiting: dict[int, dict[str, list[_QueuedJob]]] = defaultdict(lambda: defaultdict(list))
        for job in sorted(jobs, key=lambda job: -job.number):
            waiting[job.priority][job.owner].append(job)
        # the parts of a snapshot were read one after the other: an owner's first job may be in the last of them only
        starts = {job.owner: self.last_starts.get(job.owner) for job in jobs}
        last = {owner: (0, 0.0) if at is None else (1, at.timestamp()) for owner, at in starts.items()}
        busy, found = Counter(self.running), dict[str, int]()
        for _, owners in sorted(waiting.items(), reverse=True):
            turns = [(busy[owner], last[owner], waits[-1].number, owner) for owner, waits in owners.items()]
            heapify(turns)
            while turns:
                owner = turns[0][-1]
                found[owners[owner].pop().id] = len(found) + 1
                busy[owner], last[owner] = busy[owner] + 1, (2, float(len(found)))
                if owners[owner]:
                    heapreplace(turns, (busy[owner], last[owner], owners[owner][-1].number, owner))
                else:
                    heappop(turns)
        return found


def read_queue(session: Session) -> QueueSnapshot:
    """Six statements, each answered by an index. The result grows with the queue, up to `MAX_COUNTED` jobs.

    Jobs that wait after a lost attempt are counted as if they could start. Jobs for other kinds of workers are not
    counted.
    """
    # backwards through the index by priority, owner and number, so that the limit cuts off the lowest priority
    backwards = (JobRow.priority.desc(), JobRow.owner.desc(), JobRow.number.desc())
    rows = session.execute(_QUEUED_JOBS.order_by(*backwards).limit(MAX_COUNTED + 1)).all()
    ends = select(JobRow.worker_kind, func.count(), func.min(JobRow.eta_seconds)).where(RUNNING)
    running_by_kind = {kind: (count, end) for kind, count, end in session.execute(ends.group_by(JobRow.worker_kind))}
    running = session.execute(select(JobRow.owner, func.count()).where(RUNNING).group_by(JobRow.owner))
    return QueueSnapshot(
        at=session.scalars(select(now())).one(),
        queued={row.id: row for row in rows},
        counted_from=rows[-1].priority + 1 if len(rows) > MAX_COUNTED else 0,
        running={row[0]: row[1] for row in running},
        running_by_kind=running_by_kind,
        last_starts=_last_starts(session, QUEUED) if rows else {},
        duration=_usual_duration(session),
    )


def _last_starts(session: Session, which: ColumnElement[bool]) -> dict[str, datetime | None]:
    """By owner, of the owners of these jobs."""
    owners = select(JobRow.owner).where(which).distinct().subquery()
    found = session.execute(select(owners.c.owner, last_start(owners.c.owner)))
    return {row[0]: row[1] for row in found}


def _usual_duration(session: Session) -> float | None:
    """Seconds from start to end of recent jobs that succeeded: the median, since one outlier predicts little."""
    recent = session.execute(
        select(JobRow.started_at, JobRow.finished_at)
        .where(JobRow.status == JobStatus.SUCCEEDED)
        .order_by(JobRow.number.desc())
        .limit(RECENT_JOBS)
    )
    seconds = [(end - begin).total_seconds() for begin, end in recent if begin is not None and end is not None]
    return statistics.median(seconds) if seconds else None
