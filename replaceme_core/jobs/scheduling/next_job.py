"""Whose turn it is: the highest priority, then the owner with the fewest running jobs, then the one who was served
longest ago, then the oldest job.

So within one priority no owner's hundred jobs keep another one's single job waiting, with a single worker neither. Each
question is answered by an index and costs as much as there are owners, not as there are jobs, apart from `place_of`,
which has to count.
"""

import statistics
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, ScalarSelect, Select, and_, func, literal, or_, select, true, union_all
from sqlalchemy.orm import Session, aliased

from replaceme_core.admission.worker_kind import WorkerKind
from replaceme_core.jobs.clock import now
from replaceme_core.jobs.records import QueuePosition
from replaceme_core.jobs.states import JobStatus
from replaceme_core.jobs.tables import JobRow
from replaceme_core.spec import HIGHEST_PRIORITY

MOST_COUNTED = 10_000
RECENT_JOBS = 20

# spelled out in the statement, since a plan for any status cannot use an index of the queued jobs alone
QUEUED: ColumnElement[bool] = JobRow.status == literal(JobStatus.QUEUED, JobRow.status.type, literal_execute=True)
RUNNING: ColumnElement[bool] = JobRow.status == literal(JobStatus.RUNNING, JobRow.status.type, literal_execute=True)


def is_due() -> ColumnElement[bool]:
    """Neither pausing after a lost attempt nor too late. Written so that no index is used: nearly all jobs are due."""
    return and_(
        func.coalesce(JobRow.not_before, now()) <= now(),
        func.coalesce(JobRow.deadline_at, now(plus_seconds=1)) > now(),
    )


def is_served(worker_kinds: Sequence[WorkerKind] | None) -> ColumnElement[bool]:
    """Jobs for workers that serve `routes`, and for any worker; `None` stands for all routes."""
    return true() if worker_kinds is None else or_(JobRow.worker_kind.is_(None), JobRow.worker_kind.in_(worker_kinds))


Lane = tuple[ColumnElement[bool], ...]
"""Jobs that have the same route, so that an index finds the first of them; or all, then it has no condition."""


def _lanes(worker_kinds: Sequence[WorkerKind] | None) -> list[Lane]:
    return (
        [()]
        if worker_kinds is None
        else [(JobRow.worker_kind.is_(None),), *((JobRow.worker_kind == worker_kind,) for worker_kind in worker_kinds)]
    )


def take_turn(session: Session, *, worker_kinds: Sequence[WorkerKind] | None = None) -> JobRow | None:
    """The row of the queued job to start next, locked. On PostgreSQL rows that another worker is taking are skipped.

    Two workers that ask at the very same moment do not see each other's choice as running yet. `routes`: see
    `is_served`.
    """
    lanes = _lanes(worker_kinds)
    for priority in _priorities(session, lanes):
        for owner, lane in _owners(session, priority, lanes):
            row = session.scalars(
                select(JobRow)
                .where(QUEUED, *lanes[lane], JobRow.priority == priority, JobRow.owner == owner, is_due())
                .order_by(JobRow.number)
                .limit(1)
                .with_for_update(skip_locked=True, key_share=True),
                execution_options={"populate_existing": True},
            ).one_or_none()
            if row is not None:
                return row
    return None


def _priorities(session: Session, lanes: Sequence[Lane]) -> list[int]:
    """Those that queued jobs have, the highest first."""
    every = (select(literal(priority).label("priority")) for priority in range(HIGHEST_PRIORITY + 1))
    each = union_all(*every).subquery("priorities")
    # one look into the index for each; asked for the highest one, SQLite would sort the whole queue. The order says
    # which index is meant: without it PostgreSQL looks for a job of the priority in any, through the whole queue
    waiting = (
        select(JobRow.owner)
        .where(QUEUED, *lane, JobRow.priority == each.c.priority)
        .order_by(JobRow.owner)
        .limit(1)
        .scalar_subquery()
        for lane in lanes
    )
    query = select(each.c.priority).where(or_(*(found.is_not(None) for found in waiting)))
    return list(session.scalars(query.order_by(each.c.priority.desc())))


def _owners(session: Session, priority: int, lanes: Sequence[Lane]) -> list[tuple[str, int]]:
    """The owners of jobs of this priority that could start, the one whose turn it is first; with the lane's index.

    An owner with jobs in several lanes is named for each, the one with the oldest job first.
    """
    found = union_all(*(_owners_in(lane, index, priority) for index, lane in enumerate(lanes))).subquery()
    query = (
        select(found.c.owner, found.c.lane)
        .where(found.c.oldest.is_not(None))
        .order_by(found.c.running, found.c.served.nulls_first(), found.c.oldest)
    )
    return [(owner, lane) for owner, lane in session.execute(query)]


def _owners_in(lane: Lane, index: int, priority: int) -> Select[str, int, int | None, int, datetime | None]:
    waiting = (QUEUED, *lane, JobRow.priority == priority)

    def first(*where: ColumnElement[bool]) -> ScalarSelect[str]:
        return select(JobRow.owner).where(*waiting, *where).order_by(JobRow.owner).limit(1).scalar_subquery()

    # from owner to owner through the index, instead of over all their jobs
    owners = select(first().label("owner")).cte(f"owners_{index}", recursive=True)
    before = aliased(owners)
    owners = owners.union_all(select(first(JobRow.owner > before.c.owner)).where(before.c.owner.is_not(None)))
    oldest = (
        select(JobRow.number)
        .where(*waiting, JobRow.owner == owners.c.owner, is_due())
        .order_by(JobRow.number)
        .limit(1)
        .scalar_subquery()
    )
    running = select(func.count()).where(RUNNING, JobRow.owner == owners.c.owner).scalar_subquery()
    return select(
        owners.c.owner,
        literal(index).label("lane"),
        oldest.label("oldest"),
        running.label("running"),
        served_last(owners.c.owner).label("served"),
    )


def served_last(owner: ColumnElement[str]) -> ScalarSelect[datetime | None]:
    """When a job of this owner was started last; null: never."""
    return (
        select(JobRow.started_at)
        .where(JobRow.owner == owner, JobRow.started_at.is_not(None))
        .order_by(JobRow.started_at.desc())
        .limit(1)
        .scalar_subquery()
    )


def place_of(session: Session, row: JobRow) -> QueuePosition | None:
    """Where a job stands in the queue, and when it may start; `None` if it is not queued.

    Jobs that pause are counted as if they did not, jobs for other workers than its own are not.
    """
    if row.status is not JobStatus.QUEUED:
        return None
    beside = is_served(None if row.worker_kind is None else (row.worker_kind,))
    running = session.scalars(select(func.count()).select_from(JobRow).where(RUNNING, beside)).one()
    present = session.scalars(select(now())).one()
    return estimate(
        _position(session, row),
        at=present,
        running=running,
        duration=usual_duration(session),
        not_before=row.not_before,
    )


def estimate(
    position: int | None, *, at: datetime, running: int, duration: float | None, not_before: datetime | None
) -> QueuePosition:
    """The place with the start that `duration`, the usual seconds of a job, lets one guess."""
    start = None
    if position is not None and duration is not None:
        # those that run are half done, on the average
        waves = (position - 1 + (0.5 if running else 0.0)) / max(running, 1)
        start = at + timedelta(seconds=duration * waves)
        start = start if not_before is None else max(start, not_before)
    return QueuePosition(position=position, estimated_start_at=start)


def _position(session: Session, row: JobRow) -> int | None:
    """How many jobs, this one included, start until it does if none ends meanwhile; `None` for a very long queue."""
    beside = is_served(None if row.worker_kind is None else (row.worker_kind,))
    ahead = (QUEUED, beside, JobRow.priority >= row.priority)
    waiting = select(JobRow.number).where(*ahead).limit(MOST_COUNTED + 1).subquery()
    if session.scalars(select(func.count()).select_from(waiting)).one() > MOST_COUNTED:
        return None
    groups = (
        select(JobRow.priority, JobRow.owner, func.count().label("count"), func.min(JobRow.number).label("oldest"))
        .where(*ahead)
        .group_by(JobRow.priority, JobRow.owner)
        .subquery("groups")
    )
    queues: dict[int, dict[str, tuple[int, int]]] = {}
    served: dict[str, datetime | None] = {}
    for priority, owner, count, oldest, at in session.execute(select(groups, served_last(groups.c.owner))):
        queues.setdefault(priority, {})[owner] = count, oldest
        served[owner] = at
    running = running_by_owner(session)
    own = (QUEUED, beside, JobRow.priority == row.priority, JobRow.owner == row.owner, JobRow.number <= row.number)
    index = session.scalars(select(func.count()).select_from(JobRow).where(*own)).one()
    return position_in(queues, running=running, served=served, owner=row.owner, priority=row.priority, index=index)


def running_by_owner(session: Session) -> dict[str, int]:
    """How many jobs run, of those owners who have any."""
    found = session.execute(select(JobRow.owner, func.count()).where(RUNNING).group_by(JobRow.owner))
    return {row[0]: row[1] for row in found}


def position_in(
    queues: Mapping[int, Mapping[str, tuple[int, int]]],
    *,
    running: Mapping[str, int],
    served: Mapping[str, datetime | None],
    owner: str,
    priority: int,
    index: int,
) -> int:
    """The position of the job that is number `index` of its owner and priority.

    `queues` tells by priority and owner how many jobs wait, and the number of the oldest. Each of them starts at a
    level, the count of its owner's jobs which run by then. The levels are passed one after the other; within each
    those come first whose first job this is, and then the others as in the level before.
    """
    busy = dict.fromkeys(served, 0) | dict(running)
    last: dict[str, tuple[int, float]] = {
        name: (0, 0.0) if at is None else (1, at.timestamp()) for name, at in served.items()
    }
    position = 0
    for present in sorted(queues, reverse=True):
        queue = queues[present]
        order = {name: (-busy[name], last[name], oldest) for name, (_, oldest) in queue.items()}
        if present == priority:
            level = busy[owner] + index
            for name, (count, _) in queue.items():
                position += min(max(level - 1 - busy[name], 0), count)
                starts_now = 1 <= level - busy[name] <= count
                position += starts_now and order[name] <= order[owner]
            break
        position += sum(count for count, _ in queue.values())
        ends = sorted((busy[name] + count, order[name], name) for name, (count, _) in queue.items())
        for place, (level, _, name) in enumerate(ends):
            busy[name], last[name] = level, (2 + HIGHEST_PRIORITY - present, place)
    return position


def usual_duration(session: Session) -> float | None:
    """Seconds, of the jobs that succeeded lately: the median, for one that took a week says little about the next."""
    recent = session.execute(
        select(JobRow.started_at, JobRow.finished_at)
        .where(JobRow.status == JobStatus.SUCCEEDED)
        .order_by(JobRow.number.desc())
        .limit(RECENT_JOBS)
    )
    seconds = [(end - begin).total_seconds() for begin, end in recent if begin is not None and end is not None]
    return statistics.median(seconds) if seconds else None
