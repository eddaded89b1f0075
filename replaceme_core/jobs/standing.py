"""The whole queue read once, from which the place of each of its jobs follows without another question.

For whoever asks after many jobs in a moment. The rules are those of `turns.py`, and so are the positions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from replaceme_core.jobs.clock import now
from replaceme_core.jobs.records import Job, Place
from replaceme_core.jobs.tables import JobRow
from replaceme_core.jobs.turns import (
    MOST_COUNTED,
    QUEUED,
    estimate,
    position_in,
    running_by_owner,
    served_last,
    usual_duration,
)


@dataclass(frozen=True, kw_only=True)
class _Waiting:
    """One job. `index` counts from 1 among its owner's jobs of its priority."""

    priority: int
    owner: str
    index: int
    not_before: datetime | None


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Everybody's place in the queue at the time `at`."""

    at: datetime
    waiting: Mapping[str, _Waiting]
    counted_from: int
    """The lowest priority whose jobs are all in `waiting`; below it no position is known."""
    queues: Mapping[int, Mapping[str, tuple[int, int]]]
    running: Mapping[str, int]
    served: Mapping[str, datetime | None]
    duration: float | None

    def place_of(self, job: Job) -> Place | None:
        """`None`: it was not in the queue then."""
        if job.spec.priority < self.counted_from:
            return Place(position=None, estimated_start_at=None)
        one = self.waiting.get(job.id)
        if one is None:
            return None
        position = position_in(
            self.queues,
            running=self.running,
            served=self.served,
            owner=one.owner,
            priority=one.priority,
            index=one.index,
        )
        return estimate(
            position,
            at=self.at,
            running=sum(self.running.values()),
            duration=self.duration,
            not_before=one.not_before,
        )


def standing(session: Session) -> Standing:
    """Five questions, each answered by an index; the answers grow with the queue, up to `MOST_COUNTED` jobs."""
    rows = session.execute(
        select(JobRow.id, JobRow.priority, JobRow.owner, JobRow.number, JobRow.not_before)
        .where(QUEUED)
        # backwards through the index of turns, so that what is cut off is what goes last
        .order_by(JobRow.priority.desc(), JobRow.owner.desc(), JobRow.number.desc())
        .limit(MOST_COUNTED + 1)
    ).all()
    cut_off = len(rows) > MOST_COUNTED
    waiting: dict[str, _Waiting] = {}
    queues: dict[int, dict[str, tuple[int, int]]] = {}
    for job_id, priority, owner, number, not_before in reversed(rows):
        queue = queues.setdefault(priority, {})
        count, oldest = queue.get(owner, (0, number))
        queue[owner] = count + 1, oldest
        waiting[job_id] = _Waiting(priority=priority, owner=owner, index=count + 1, not_before=not_before)
    owners = select(JobRow.owner).where(QUEUED).distinct().subquery()
    served: dict[str, datetime | None] = {}
    if waiting:
        found = session.execute(select(owners.c.owner, served_last(owners.c.owner)))
        served = {row[0]: row[1] for row in found}
    return Standing(
        at=session.scalars(select(now())).one(),
        waiting=waiting,
        counted_from=rows[-1].priority + 1 if cut_off else 0,
        queues=queues,
        running=running_by_owner(session),
        served=served,
        duration=usual_duration(session),
    )
