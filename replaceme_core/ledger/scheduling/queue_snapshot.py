"""The whole queue, read once: the position of each of its jobs follows without another statement.

For a process that is asked about many jobs within a moment. The rules and the results are those of `queue_position`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from replaceme_core.hardware import WorkerKind
from replaceme_core.ledger.clock import now
from replaceme_core.ledger.reading.snapshots import JobSnapshot
from replaceme_core.ledger.records import QueuePosition
from replaceme_core.ledger.scheduling.eligibility import QUEUED, RUNNING
from replaceme_core.ledger.scheduling.next_job import last_start
from replaceme_core.ledger.scheduling.queue_position import (
    MAX_COUNTED,
    QueueCounts,
    estimate_start,
    position_in,
    running_by_owner,
    usual_duration,
)
from replaceme_core.ledger.tables import JobRow


class _QueuedJob(NamedTuple):  # made by the thousand: a frozen dataclass takes several times as long
    job_id: str
    priority: int
    owner: str
    number: int
    not_before: datetime | None
    worker_kind: WorkerKind | None


@dataclass(frozen=True, kw_only=True)
class _KindQueue:
    """The jobs that compete for the workers of one kind. A job's index counts from 1 within its owner and priority."""

    counts: QueueCounts
    indexes: Mapping[str, int]
    running: int
    first_end: float | None
    """In how many seconds the first of the running jobs ends."""


@dataclass(frozen=True, kw_only=True)
class QueueSnapshot:
    """The queue at the time `at`, by the database's clock."""

    at: datetime
    queued: Mapping[str, _QueuedJob]
    counted_from: int
    """The lowest priority whose jobs are all in `queued`. No position below it is known."""
    by_worker_kind: Mapping[WorkerKind | None, _KindQueue]
    running: Mapping[str, int]
    last_starts: Mapping[str, datetime | None]
    duration: float | None

    def position_of(self, job: JobSnapshot) -> QueuePosition | None:
        """Position and estimated start of `job`; `None` if it was not queued at that time."""
        if job.priority < self.counted_from:
            return QueuePosition(position=None, estimated_start_at=None)
        found = self.queued.get(job.id)
        if found is None:
            return None
        queue = self.by_worker_kind[found.worker_kind]
        position = position_in(
            queue.counts,
            running=self.running,
            last_starts=self.last_starts,
            owner=found.owner,
            priority=found.priority,
            index=queue.indexes[found.job_id],
        )
        return estimate_start(
            position,
            at=self.at,
            running=queue.running,
            first_end=queue.first_end,
            duration=self.duration,
            not_before=found.not_before,
        )


def read_queue(session: Session) -> QueueSnapshot:
    """Six statements, each answered by an index. The result grows with the queue, up to `MAX_COUNTED` jobs."""
    rows = session.execute(
        select(JobRow.id, JobRow.priority, JobRow.owner, JobRow.number, JobRow.not_before, JobRow.worker_kind)
        .where(QUEUED)
        # backwards through the index by priority, owner and number, so that the limit cuts off the lowest priority
        .order_by(JobRow.priority.desc(), JobRow.owner.desc(), JobRow.number.desc())
        .limit(MAX_COUNTED + 1)
    ).all()
    cut_off = len(rows) > MAX_COUNTED
    queued = [_QueuedJob._make(row) for row in reversed(rows)]
    last_starts: dict[str, datetime | None] = {}
    if queued:
        owners = select(JobRow.owner).where(QUEUED).distinct().subquery()
        found = session.execute(select(owners.c.owner, last_start(owners.c.owner)))
        last_starts = {row[0]: row[1] for row in found}
    running: dict[WorkerKind | None, tuple[int, float | None]] = {}
    for worker_kind, count, first_end in session.execute(
        select(JobRow.worker_kind, func.count(), func.min(JobRow.eta_seconds))
        .where(RUNNING)
        .group_by(JobRow.worker_kind)
    ):
        running[worker_kind] = count, first_end
    return QueueSnapshot(
        at=session.scalars(select(now())).one(),
        queued={job.job_id: job for job in queued},
        counted_from=queued[0].priority + 1 if cut_off else 0,
        by_worker_kind={
            worker_kind: _kind_queue(queued, running, worker_kind)
            for worker_kind in {job.worker_kind for job in queued}
        },
        running=running_by_owner(session),
        last_starts=last_starts,
        duration=usual_duration(session),
    )


def _kind_queue(
    queued: Iterable[_QueuedJob],
    running: Mapping[WorkerKind | None, tuple[int, float | None]],
    worker_kind: WorkerKind | None,
) -> _KindQueue:
    """The jobs that compete with one of this kind; a job that any worker may take competes with all."""
    counts: dict[int, dict[str, tuple[int, int]]] = {}
    indexes: dict[str, int] = {}
    for job in queued:
        if worker_kind is None or job.worker_kind in (None, worker_kind):
            by_owner = counts.setdefault(job.priority, {})
            count, oldest = by_owner.get(job.owner, (0, job.number))
            by_owner[job.owner] = count + 1, oldest
            indexes[job.job_id] = count + 1
    competing = [of for other, of in running.items() if worker_kind is None or other in (None, worker_kind)]
    return _KindQueue(
        counts=counts,
        indexes=indexes,
        running=sum(count for count, _ in competing),
        first_end=min((end for _, end in competing if end is not None), default=None),
    )
