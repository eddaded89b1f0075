"""Values that the ledger accepts and returns: frozen, never rows, and how rows become them.

Every time is an aware UTC datetime.
"""

import base64
import binascii
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

from pydantic import ValidationError
from sqlalchemy import ColumnElement, true
from sqlalchemy.orm import InstrumentedAttribute

from replaceme_core import shapes
from replaceme_core.errors import InvalidInput
from replaceme_core.hardware import WorkerKind
from replaceme_core.ledger.states import TERMINAL, EventType, JobStatus
from replaceme_core.ledger.tables import ApiKeyRow, DeliveryRow, JobRow, JsonObject, WebhookRow
from replaceme_core.request.spec import CompressionSpec
from replaceme_core.runner.messages import Stage
from replaceme_core.runner.sandbox import SandboxMode
from replaceme_core.telemetry import UNKNOWN, Origin

A = TypeVar("A")
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


class JobEvent(shapes.JobEvent):
    """One event in a job's history. `seq` counts 1, 2, 3 ... within the job, without gaps but for a restore."""

    job_id: str
    type: EventType
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
class WorkerReport:
    """What a worker says of itself. `processes` are the process ids that its jobs name, as `HOST:PID`.

    The bytes are those that its processes may use and use, and the same of its GPU; `None`: not known, or no GPU.
    """

    name: str
    host: str
    kinds: tuple[WorkerKind, ...]
    device: str
    sandbox: SandboxMode
    processes: tuple[int, ...]
    total_bytes: int | None = None
    used_bytes: int | None = None
    gpu_total_bytes: int | None = None
    gpu_used_bytes: int | None = None


class Worker(shapes.Worker):
    """A worker, as its caller sees it: `jobs` are those of the caller."""

    kinds: tuple[WorkerKind, ...]
    sandbox: SandboxMode


@dataclass(frozen=True, kw_only=True)
class Page(Generic[T]):
    """A part of a list. `next_cursor` is opaque, and `None` on the last page."""

    items: tuple[T, ...]
    next_cursor: str | None


def page_of(rows: Sequence[A], limit: int, record: Callable[[A], T], *, cursor: Callable[[A], str]) -> Page[T]:
    """The page of a query that has asked for one row more than the page has."""
    return Page(
        items=tuple(record(row) for row in rows[:limit]),
        next_cursor=cursor(rows[limit - 1]) if len(rows) > limit else None,
    )


def to_cursor(text: str) -> str:
    """A position in a list as clients send it back: opaque, and safe in a query."""
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def from_cursor(cursor: str) -> str:
    """The text in a cursor; "" in what is none."""
    try:
        return base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        return ""


_BEFORE = re.compile(r"before:([1-9]\d{0,17})")


def to_place(row: ApiKeyRow | WebhookRow | DeliveryRow) -> str:
    """The cursor at a row of a list that has the newest first."""
    return to_cursor(f"before:{row.number}")


def after_place(cursor: str | None, number: InstrumentedAttribute[int]) -> ColumnElement[bool]:
    """What comes after it, by the column of numbers; `None`: all. Raises `InvalidInput` (field `cursor`)."""
    if cursor is None:
        return true()
    match = _BEFORE.fullmatch(from_cursor(cursor))
    if match is None:
        raise InvalidInput(
            "the cursor must be the next_cursor of an earlier page, unchanged", field="cursor", value=cursor
        )
    return number < int(match[1])


# These fields have columns of their own, because SQL statements use them. They are left out of the JSON, because the
# version before this one refuses fields that it does not know.
_IN_COLUMNS = ("priority", "max_queue_seconds", "max_runtime_seconds", "credential")
# left out of the JSON unless they are set, for the same reason
_ONLY_IF_SET = {
    "compute": ("quantization", "pattern_safe"),
    "calibration": ("self_generated", "sources", "general", "repeated", "judged_on"),
    "method": ("name",),
    "evaluation": ("tasks", "task_limit", "few_shot"),
    "output": ("overwrite", "create_pr"),
}
_PARTS_ONLY_IF_SET = ("gate", "heal")


def stored_spec(spec: CompressionSpec) -> JsonObject:
    """The part of a specification that is stored as JSON."""
    unset = {
        part: {name for name in names if _is_unset(getattr(getattr(spec, part), name))}
        for part, names in _ONLY_IF_SET.items()
    }
    absent = [name for name in _PARTS_ONLY_IF_SET if getattr(spec, name) is None]
    exclude: Mapping[str, bool | set[str]] = {**dict.fromkeys((*_IN_COLUMNS, *absent), True), **unset}
    return spec.model_dump(mode="json", exclude=exclude)


def _is_unset(value: object) -> bool:
    return value is None or value is False or value == ()  # and not 0, which is a share


def to_spec(row: JobRow) -> CompressionSpec:
    """The whole specification, from its JSON and its columns, validated."""
    return CompressionSpec.model_validate({**row.spec, **{name: getattr(row, name) for name in _IN_COLUMNS}})


def to_job(row: JobRow) -> Job:
    """The record of a row."""
    spec = to_spec(row)
    return Job.of(row, spec=spec, labels=spec.labels, **_state(row))


def to_shown_job(row: JobRow) -> shapes.Job:
    """The same for messages. A specification of another release, which this one cannot read, is shown as it is stored:
    the job can be failed, requeued and cancelled all the same.
    """
    try:
        return to_job(row)
    except ValidationError:
        return shapes.Job.of(row, spec=row.spec, labels=row.spec.get("labels", {}), **_state(row))


def _state(row: JobRow) -> dict[str, object]:
    """The version before stores no summary, and clears of the estimate `eta_seconds` only."""
    stored = row.result or {}
    return {
        "route": row.worker_kind,
        "progress": shapes.JobProgress(
            overall=row.overall,
            stage=row.stage_fraction,
            eta_seconds=row.eta_seconds,
            eta_error_seconds=None if row.eta_seconds is None else row.eta_error_seconds,
        ),
        "error": None if row.error_code is None else {"code": row.error_code, "message": row.error_message or ""},
        "result": {name: stored[name] for name in shapes.JobResult.model_fields if name in stored} or None,
        "summary": stored.get("summary"),
    }
