"""Workers."""

from datetime import datetime
from typing import Self

from api.schemas.body import Body
from replaceme_core.hardware import WorkerKind
from replaceme_core.ledger.records import Worker
from replaceme_core.runner.sandbox import SandboxMode


class WorkerBody(Body):
    """A worker. `alive` is false once it has missed its heartbeats; it is listed for another hour.

    `busy`: it runs a job; `jobs` are those of yours.
    """

    name: str
    host: str
    kinds: tuple[WorkerKind, ...]
    device: str
    sandbox: SandboxMode
    started_at: datetime
    heartbeat_at: datetime
    alive: bool
    busy: bool
    jobs: tuple[str, ...]

    @classmethod
    def of(cls, worker: Worker, *, caller: str) -> Self:
        return cls(
            name=worker.name,
            host=worker.host,
            kinds=worker.kinds,
            device=worker.device,
            sandbox=worker.sandbox,
            started_at=worker.started_at,
            heartbeat_at=worker.heartbeat_at,
            alive=worker.alive,
            busy=bool(worker.jobs),
            jobs=tuple(job_id for job_id, owner in worker.jobs if owner == caller),
        )
