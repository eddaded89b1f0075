"""The whole queue read once, from which the place of each of its jobs follows without another question.

For whoever asks after many jobs in a moment. The rules are those of `turns.py`, and so are the positions.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from replaceme_core.admission.worker_kind import WorkerKind
from replaceme_core.jobs.clock import now
from replaceme_core.jobs.records import Job, QueuePosition
from replaceme_core.jobs.scheduling.next_job import (
    MOST_COUNTED,
    QUEUED,
    RUNNING,
    estimate,
    position_in,
    running_by_owner,
    served_last,
    usual_duration,
)
from replaceme_core.jobs.tables import JobRow


class _Waiting(NamedTuple):  # made by the thousand: a frozen dataclass takes several times as long
    job_id: str
    priority: int
    owner: str
    number: int
    not_before: datetime | None
    worker_kind: WorkerKind | None


@dataclass(frozen=True, kw_only=True)
class _Line:
    """The jobs that the workers of one route may take. A job's index counts from 1 within its owner and priority."""

    queues: Mapping[int, Mapping[str, tuple[int, int]]]
    indexes: Mapping[str, int]
    running: int


@dataclass(frozen=True, kw_only=True)
class QueuePositions:
    """Everybody's place in the queue at the time `at`."""

    at: datetime
    waiting: Mapping[str, _Waiting]
    counted_from: int
    """The lowest priority whose jobs are all in `waiting`; below it no position is known."""
    lines: Mapping[WorkerKind | None, _Line]
    running: Mapping[str, int]
    served: Mapping[str, datetime | None]
    duration: float | None

    def place_of(self, job: Job) -> QueuePosition | None:
        """`None`: it was not in the queue then."""
        if job.spec.priority < self.counted_from:
            return QueuePosition(position=None, estimated_start_at=None)
        one = self.waiting.get(job.id)
        if one is None:
            return None
        line = self.lines[one.worker_kind]
        position = position_in(
            line.queues,
            running=self.running,
            served=self.served,
            owner=one.owner,
            priority=one.priority,
            index=line.indexes[one.job_id],
        )
        return estimate(position, at=self.at, running=line.running, duration=self.duration, not_before=one.not_before)


def queue_positions(session: Session) -> QueuePositions:
    """Six questions, each answered by an index; the answers grow with the queue, up to `MOST_COUNTED` jobs."""
    rows = session.execute(
        select(JobRow.id, JobRow.priority, JobRow.owner, JobRow.number, JobRow.not_before, JobRow.worker_kind)
        .where(QUEUED)
        # backwards through the index of turns, so that what is cut off is what goes last
        .order_by(JobRow.priority.desc(), JobRow.owner.desc(), JobRow.number.desc())
        .limit(MOST_COUNTED + 1)
    ).all()
    cut_off = len(rows) > MOST_COUNTED
    waiting = [_Waiting._make(row) for row in reversed(rows)]
    served: dict[str, datetime | None] = {}
    if waiting:
        owners = select(JobRow.owner).where(QUEUED).distinct().subquery()
        found = session.execute(select(owners.c.owner, served_last(owners.c.owner)))
        served = {row[0]: row[1] for row in found}
    running: dict[WorkerKind | None, int] = {}
    for worker_kind, count in session.execute(
        select(JobRow.worker_kind, func.count()).where(RUNNING).group_by(JobRow.worker_kind)
    ):
        running[worker_kind] = count
    return QueuePositions(
        at=session.scalars(select(now())).one(),
        waiting={one.job_id: one for one in waiting},
        counted_from=waiting[0].priority + 1 if cut_off else 0,
        lines={
            worker_kind: _line(waiting, running, worker_kind) for worker_kind in {one.worker_kind for one in waiting}
        },
        running=running_by_owner(session),
        served=served,
        duration=usual_duration(session),
    )


def _line(
    waiting: Iterable[_Waiting], running: Mapping[WorkerKind | None, int], worker_kind: WorkerKind | None
) -> _Line:
    """What stands beside a job of this route: for one that any worker may take, everything."""
    queues: dict[int, dict[str, tuple[int, int]]] = {}
    indexes: dict[str, int] = {}
    for one in waiting:
        if worker_kind is None or one.worker_kind in (None, worker_kind):
            queue = queues.setdefault(one.priority, {})
            count, oldest = queue.get(one.owner, (0, one.number))
            queue[one.owner] = count + 1, oldest
            indexes[one.job_id] = count + 1
    beside = (count for other, count in running.items() if worker_kind is None or other in (None, worker_kind))
    return _Line(queues=queues, indexes=indexes, running=sum(beside))
