"""The workers that have reported themselves, and what each is doing."""

from collections import Counter

from sqlalchemy import delete, insert, select, update
from sqlalchemy.orm import Session

from replaceme_core.hardware import WorkerKind
from replaceme_core.ledger.clock import now
from replaceme_core.ledger.records import Worker, WorkerReport
from replaceme_core.ledger.scheduling.eligibility import RUNNING
from replaceme_core.ledger.tables import JobRow
from replaceme_core.ledger.watching.tables import WorkerRow
from replaceme_core.runner.sandbox import SandboxMode

REMEMBERED_SECONDS = 3600.0
"""How long a worker is listed after it was lost."""


class Workers:
    """The workers within one transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def report(self, report: WorkerReport, *, alive_seconds: float) -> None:
        """Store a heartbeat: without another one within `alive_seconds`, the worker counts as lost."""
        values = {
            "host": report.host,
            "kinds": [kind.value for kind in report.kinds],
            "device": report.device,
            "sandbox": report.sandbox,
            "processes": list(report.processes),
            "memory_bytes": report.memory.total_bytes,
            "memory_used_bytes": report.memory.used_bytes,
            "gpu_memory_bytes": report.memory.gpu_total_bytes,
            "gpu_memory_used_bytes": report.memory.gpu_used_bytes,
            "heartbeat_at": now(),
            "expires_at": now(plus_seconds=alive_seconds),
        }
        known = self._session.execute(
            update(WorkerRow).where(WorkerRow.name == report.name).values(**values).returning(WorkerRow.name)
        ).one_or_none()
        if known is None:
            self._session.execute(insert(WorkerRow).values(name=report.name, started_at=now(), **values))

    def remove(self, name: str) -> None:
        """The worker has ended."""
        self._session.execute(delete(WorkerRow).where(WorkerRow.name == name))

    def forget_lost(self) -> None:
        """Delete workers that were lost longer than `REMEMBERED_SECONDS` ago."""
        self._session.execute(delete(WorkerRow).where(WorkerRow.expires_at < now(plus_seconds=-REMEMBERED_SECONDS)))

    def list(self) -> tuple[Worker, ...]:
        """All of them by name, each with the ids of the jobs that it runs."""
        rows = self._session.execute(
            select(WorkerRow, WorkerRow.expires_at > now()).order_by(WorkerRow.name),
            execution_options={"populate_existing": True},
        ).all()
        running: dict[str | None, list[tuple[str, str]]] = {}
        jobs = self._session.execute(select(JobRow.id, JobRow.owner, JobRow.worker).where(RUNNING))
        for job_id, owner, worker in jobs:
            running.setdefault(worker, []).append((job_id, owner))
        return tuple(
            Worker(
                name=row.name,
                host=row.host,
                kinds=tuple(WorkerKind(str(kind)) for kind in row.kinds),
                device=row.device,
                sandbox=row.sandbox,
                started_at=row.started_at,
                heartbeat_at=row.heartbeat_at,
                alive=bool(alive),
                jobs=tuple(
                    job for process in row.processes for job in running.get(f"{row.host}:{process}", []) if alive
                ),
            )
            for row, alive in rows
        )

    def count_alive(self) -> dict[WorkerKind, int]:
        """How many live workers serve each kind of job."""
        rows = self._session.scalars(select(WorkerRow.kinds).where(WorkerRow.expires_at > now()))
        counts = Counter(WorkerKind(str(kind)) for kinds in rows for kind in kinds)
        return {kind: counts[kind] for kind in WorkerKind}

    def sandboxes_alive(self) -> tuple[SandboxMode, ...]:
        """The sandbox of each live worker, by the name of the worker."""
        alive = select(WorkerRow.sandbox).where(WorkerRow.expires_at > now()).order_by(WorkerRow.name)
        return tuple(self._session.scalars(alive))
