"""Values that the ledger accepts and returns: frozen, never rows. Every time is an aware UTC datetime."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

from replaceme_core import shapes
from replaceme_core.hardware import WorkerKind
from replaceme_core.ledger.states import TERMINAL, EventType, JobStatus
from replaceme_core.request.spec import CompressionSpec
from replaceme_core.runner.messages import Stage
from replaceme_core.runner.sandbox import SandboxMode
from replaceme_core.telemetry import UNKNOWN, Origin

T = TypeVar("T")


class Job(shapes.Job):
    """The present state of one job: what everybody sees, and what the service itself needs to know."""

    owner: str
    status: JobStatus
    spec: CompressionSpec
    route: WorkerKind | None
    stage: Stage | None
    worker: str | None
    lease_expires_at: datetime | None
    cancel_requested_at: datetime | None

    @property
    def worker_kind(self) -> WorkerKind | None:
        """The workers that may run it; `None`: all."""
        return self.route

    @property
    def is_terminal(self) -> bool:
        return self.status in TERMINAL

    @property
    def cancel_requested(self) -> bool:
        return self.cancel_requested_at is not None


@dataclass(frozen=True, kw_only=True)
class JobEvent:
    """One event in a job's history. `seq` counts 1, 2, 3 ... within the job, without gaps."""

    job_id: str
    seq: int
    type: EventType
    at: datetime
    attempt: int
    data: Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """The right to run a job. `token` is new for every claim, and every later write is conditional on it.

    `seconds_left`: until the job's deadline, by the database's clock at the moment of the claim; `None`: no deadline.
    `uncounted_attempts`: earlier attempts that do not count against the maximum. `origin`: of the job.
    """

    job_id: str
    token: str
    attempt: int
    seconds_left: float | None = None
    uncounted_attempts: int = 0
    origin: Origin = UNKNOWN

    @property
    def counted(self) -> int:
        """Attempts that count against the maximum, including this one."""
        return self.attempt - self.uncounted_attempts


@dataclass(frozen=True, kw_only=True)
class IdempotencyKey:
    """The key of a request that may be sent again. `fingerprint` distinguishes it from other requests with this key."""

    key: str
    fingerprint: str
    keep_seconds: float


@dataclass(frozen=True, kw_only=True)
class WakeUp:
    """A message that makes a worker look for work: the job it names, and the kind of worker; `None`: any."""

    job_id: str
    worker_kind: WorkerKind | None


@dataclass(frozen=True, kw_only=True)
class BulkCancel:
    """The jobs that were asked to cancel, with their status since; `more`: others match, and another call is needed."""

    statuses: Mapping[str, JobStatus]
    more: bool


@dataclass(frozen=True, kw_only=True)
class WorkerMemory:
    """Bytes that the processes of a worker may use and use, and the same of its GPU; `None`: not known, or no GPU."""

    total_bytes: int | None = None
    used_bytes: int | None = None
    gpu_total_bytes: int | None = None
    gpu_used_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class WorkerReport:
    """What a worker says of itself. `processes` are the process ids that its jobs name, as `HOST:PID`."""

    name: str
    host: str
    kinds: tuple[WorkerKind, ...]
    device: str
    sandbox: SandboxMode
    processes: tuple[int, ...]
    memory: WorkerMemory = WorkerMemory()


class Worker(shapes.Worker):
    """A worker, as its caller sees it: `jobs` are those of the caller."""

    kinds: tuple[WorkerKind, ...]
    sandbox: SandboxMode


@dataclass(frozen=True, kw_only=True)
class Page(Generic[T]):
    """A part of a list. `next_cursor` is opaque, and `None` on the last page."""

    items: tuple[T, ...]
    next_cursor: str | None
