"""What the service answers, as a client reads it. Pydantic only: a client needs no web framework.

Unknown fields pass through, so that an older client understands a newer service; the service's own, strict side is
`schemas.py`.
"""

from datetime import datetime
from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field

TERMINAL = frozenset({"succeeded", "failed", "cancelled"})

T = TypeVar("T")


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow")


class JobProgress(_Answer):
    """`overall` runs from 0 to 1, and so does `stage`, the part of the present stage that is done."""

    overall: float
    stage: float | None = None
    eta_seconds: float | None = None


class JobError(_Answer):
    code: str
    message: str


class JobResult(_Answer):
    repo_id: str
    revision: str
    removed_blocks: tuple[int, ...]
    kept_blocks: tuple[int, ...]


class QueuePosition(_Answer):
    """Where a queued job stands: 1 starts next."""

    position: int | None = None
    estimated_start_at: datetime | None = None


class Job(_Answer):
    """A job as the service shows it; `spec` is the resolved specification as JSON."""

    id: str
    status: str
    route: str | None = None
    stage: str | None = None
    progress: JobProgress
    attempt: int
    labels: dict[str, str] = Field(default_factory=dict)
    spec: dict[str, object]
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    error: JobError | None = None
    result: JobResult | None = None
    queue: QueuePosition | None = None
    links: dict[str, str] = Field(default_factory=dict)

    @property
    def is_terminal(self) -> bool:
        return self.status in TERMINAL


class JobEvent(_Answer):
    seq: int
    type: str
    at: datetime
    attempt: int
    data: dict[str, object] = Field(default_factory=dict)


class Metric(_Answer):
    """One measured value. NaN and infinities come as strings and are numbers again here."""

    name: str
    stage: str
    block: int | None = None
    candidate: str | None = None
    value: float
    unit: str
    at: datetime


class Family(_Answer):
    """A family of models, the methods that work for it, the default one of its maps first; or why it is refused."""

    model_type: str
    supported: bool = True
    methods: tuple[str, ...]
    structures: tuple[str, ...] = ()
    reason: str | None = None


class FieldError(_Answer):
    field: str = ""
    value: object = None
    message: str


class Problem(_Answer):
    """An `application/problem+json` body (RFC 9457)."""

    type: str = "about:blank"
    title: str = ""
    status: int = 0
    detail: str = ""
    code: str = ""
    errors: tuple[FieldError, ...] = ()


class Page(_Answer, Generic[T]):
    """A part of a list; `next_cursor` is `None` on the last one."""

    items: tuple[T, ...]
    next_cursor: str | None = None
