"""The position of one queued job and its estimated start, by the rules of `next_job`.

Unlike the choice of the next job, this has to count the jobs ahead, up to `MAX_COUNTED` of them.
"""

import statistics
from collections.abc import Mapping
from datetime import datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from replaceme_core.ledger.clock import now
from replaceme_core.ledger.records import QueuePosition
from replaceme_core.ledger.scheduling.eligibility import QUEUED, RUNNING, is_served
from replaceme_core.ledger.scheduling.next_job import last_start
from replaceme_core.ledger.states import JobStatus
from replaceme_core.ledger.tables import JobRow
from replaceme_core.request.spec import HIGHEST_PRIORITY

MAX_COUNTED = 10_000
RECENT_JOBS = 20

QueueCounts = Mapping[int, Mapping[str, tuple[int, int]]]
"""Queued jobs by priority and owner: how many there are, and the `number` of the oldest."""


def find_queue_position(session: Session, row: JobRow) -> QueuePosition | None:
    """Position and estimated start of a job; `None` if it is not queued.

    Jobs that wait after a lost attempt are counted as if they could start. Jobs for other kinds of workers are not
    counted.
    """
    if row.status is not JobStatus.QUEUED:
        return None
    same_workers = is_served(None if row.worker_kind is None else (row.worker_kind,))
    running, first_end = session.execute(
        select(func.count(), func.min(JobRow.eta_seconds)).where(RUNNING, same_workers)
    ).one()
    present = session.scalars(select(now())).one()
    return estimate_start(
        _count_position(session, row),
        at=present,
        running=running,
        first_end=first_end,
        duration=usual_duration(session),
        not_before=row.not_before,
    )


def estimate_start(
    position: int | None,
    *,
    at: datetime,
    running: int,
    first_end: float | None,
    duration: float | None,
    not_before: datetime | None,
) -> QueuePosition:
    """The position with a start that is estimated from `duration`, the usual seconds of a job.

    The first of the `running` jobs ends in `first_end` seconds, if that is known.
    """
    start = None
    if position is not None and duration is not None:
        if first_end is None:  # running jobs are half done on average
            first_end = duration / 2 / running if running else 0.0
        start = at + timedelta(seconds=first_end + duration * (position - 1) / max(running, 1))
        start = start if not_before is None else max(start, not_before)
        # to the minute: it is no more exact, and a client that polls need not get each second of it
        start = start.replace(second=0, microsecond=0) + timedelta(minutes=1)
    return QueuePosition(position=position, estimated_start_at=start)


def position_in(
    counts: QueueCounts,
    *,
    running: Mapping[str, int],
    last_starts: Mapping[str, datetime | None],
    owner: str,
    priority: int,
    index: int,
) -> int:
    """The position of the job that is number `index` (from 1) of its owner and priority.

    A job starts at a level: the number of its owner's running jobs, itself included, right after it has started if no
    job ends meanwhile. Levels are served in ascending order. Within a level, owners whose first start it is come first;
    the others follow in the order of the level before.
    """
    busy = dict.fromkeys(last_starts, 0) | dict(running)
    last: dict[str, tuple[int, float]] = {
        name: (0, 0.0) if at is None else (1, at.timestamp()) for name, at in last_starts.items()
    }
    position = 0
    for present in sorted(counts, reverse=True):
        queue = counts[present]
        order = {name: (-busy[name], last[name], oldest) for name, (_, oldest) in queue.items()}
        if present == priority:
            level = busy[owner] + index
            for name, (count, _) in queue.items():
                position += min(max(level - 1 - busy[name], 0), count)
                starts_at_level = 1 <= level - busy[name] <= count
                position += starts_at_level and order[name] <= order[owner]
            break
        # jobs of a higher priority all start before; then their owners have more running jobs and a later last start
        position += sum(count for count, _ in queue.values())
        ends = sorted((busy[name] + count, order[name], name) for name, (count, _) in queue.items())
        for rank, (level, _, name) in enumerate(ends):
            busy[name], last[name] = level, (2 + HIGHEST_PRIORITY - present, rank)
    return position


def running_by_owner(session: Session) -> dict[str, int]:
    """The number of running jobs of each owner who has any."""
    found = session.execute(select(JobRow.owner, func.count()).where(RUNNING).group_by(JobRow.owner))
    return {row[0]: row[1] for row in found}


def usual_duration(session: Session) -> float | None:
    """Seconds from start to end of recent jobs that succeeded: the median, since one outlier predicts little."""
    recent = session.execute(
        select(JobRow.started_at, JobRow.finished_at)
        .where(JobRow.status == JobStatus.SUCCEEDED)
        .order_by(JobRow.number.desc())
        .limit(RECENT_JOBS)
    )
    seconds = [(end - begin).total_seconds() for begin, end in recent if begin is not None and end is not None]
    return statistics.median(seconds) if seconds else None


def _count_position(session: Session, row: JobRow) -> int | None:
    """The number of jobs that start up to and including this one; `None` if the queue is too long to count."""
    same_workers = is_served(None if row.worker_kind is None else (row.worker_kind,))
    ahead = (QUEUED, same_workers, JobRow.priority >= row.priority)
    waiting = select(JobRow.number).where(*ahead).limit(MAX_COUNTED + 1).subquery()
    if session.scalars(select(func.count()).select_from(waiting)).one() > MAX_COUNTED:
        return None
    groups = (
        select(JobRow.priority, JobRow.owner, func.count().label("count"), func.min(JobRow.number).label("oldest"))
        .where(*ahead)
        .group_by(JobRow.priority, JobRow.owner)
        .subquery("groups")
    )
    counts: dict[int, dict[str, tuple[int, int]]] = {}
    last_starts: dict[str, datetime | None] = {}
    for priority, owner, count, oldest, at in session.execute(select(groups, last_start(groups.c.owner))):
        counts.setdefault(priority, {})[owner] = count, oldest
        last_starts[owner] = at
    running = running_by_owner(session)
    own = (
        QUEUED,
        same_workers,
        JobRow.priority == row.priority,
        JobRow.owner == row.owner,
        JobRow.number <= row.number,
    )
    index = session.scalars(select(func.count()).select_from(JobRow).where(*own)).one()
    return position_in(
        counts, running=running, last_starts=last_starts, owner=row.owner, priority=row.priority, index=index
    )
