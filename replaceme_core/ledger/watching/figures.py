"""What monitoring reads: how much waits and runs, which workers live, how much memory they use, and the totals.

Every statement reads an index on what is queued, running or pending, or a table with few rows. The number of finished
jobs costs nothing.
"""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, func, literal, select
from sqlalchemy.orm import Session

from replaceme_core.hardware import WorkerKind
from replaceme_core.ledger.clock import now
from replaceme_core.ledger.records import WorkerMemory
from replaceme_core.ledger.scheduling.eligibility import QUEUED, RUNNING
from replaceme_core.ledger.states import JobStatus
from replaceme_core.ledger.tables import JobRow
from replaceme_core.ledger.watching.tables import WorkerRow
from replaceme_core.ledger.watching.totals import Totals, read_totals
from replaceme_core.ledger.watching.workers import Workers
from replaceme_core.ledger.webhooks.states import DeliveryState
from replaceme_core.ledger.webhooks.tables import DeliveryRow

MOST_WORKERS = 500
# written into the statement, for the partial index
_PENDING: ColumnElement[bool] = DeliveryRow.state == literal(
    DeliveryState.PENDING, DeliveryRow.state.type, literal_execute=True
)


@dataclass(frozen=True, kw_only=True)
class Figures:
    """The service as a whole, all owners together. The key `None` stands for jobs that any worker may take.

    `oldest_queued_seconds`: since the job that was submitted first was submitted. `pending_deliveries` are messages to
    webhooks that are still to be sent, `late_delivery_seconds` how long the first of them has been due.
    """

    jobs: dict[tuple[JobStatus, WorkerKind | None], int]
    oldest_queued_seconds: dict[WorkerKind | None, float]
    workers: dict[WorkerKind, int]
    memory: dict[str, WorkerMemory]
    pending_deliveries: int
    late_delivery_seconds: float
    totals: Totals


def read_figures(session: Session) -> Figures:
    """All figures. `memory` is that of the live workers by name, at most `MOST_WORKERS` of them."""
    jobs: dict[tuple[JobStatus, WorkerKind | None], int] = {}
    oldest: dict[int, WorkerKind | None] = {}
    queued = select(JobRow.worker_kind, func.count(), func.min(JobRow.number)).where(QUEUED)
    for kind, number, first in session.execute(queued.group_by(JobRow.worker_kind)):
        jobs[JobStatus.QUEUED, kind] = number
        oldest[first] = kind
    running = select(JobRow.worker_kind, func.count()).where(RUNNING).group_by(JobRow.worker_kind)
    for kind, number in session.execute(running):
        jobs[JobStatus.RUNNING, kind] = number
    present = session.scalars(select(now())).one()
    created = session.execute(select(JobRow.number, JobRow.created_at).where(JobRow.number.in_(oldest)))
    pending, due_at = session.execute(select(func.count(), func.min(DeliveryRow.next_try_at)).where(_PENDING)).one()
    return Figures(
        jobs=jobs,
        oldest_queued_seconds={oldest[number]: _seconds(at, present) for number, at in created},
        workers=Workers(session).count_alive(),
        memory=_memory(session),
        pending_deliveries=pending,
        late_delivery_seconds=0.0 if due_at is None else _seconds(due_at, present),
        totals=read_totals(session),
    )


def _seconds(since: datetime, present: datetime) -> float:
    return max((present - since).total_seconds(), 0.0)


def _memory(session: Session) -> dict[str, WorkerMemory]:
    alive = select(WorkerRow).where(WorkerRow.expires_at > now()).order_by(WorkerRow.heartbeat_at.desc())
    rows = session.scalars(alive.limit(MOST_WORKERS), execution_options={"populate_existing": True})
    return {
        row.name: WorkerMemory(
            total_bytes=row.memory_bytes,
            used_bytes=row.memory_used_bytes,
            gpu_total_bytes=row.gpu_memory_bytes,
            gpu_used_bytes=row.gpu_memory_used_bytes,
        )
        for row in rows
    }
