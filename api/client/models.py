"""The service's responses as a client reads them. Pydantic only: a client needs no web framework.

Unknown fields are kept, so that an older client works with a newer service. The service's own strict bodies are in
`api.schemas`.
"""

from datetime import datetime
from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field

TERMINAL = frozenset({"succeeded", "failed", "cancelled"})
"""The statuses in which a job has ended; also the types of its last event."""

T = TypeVar("T")


class _Response(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow")


class JobProgress(_Response):
    """`overall` is the completed fraction of the job, `stage` that of its current stage, both from 0 to 1."""

    overall: float
    stage: float | None = None
    eta_seconds: float | None = None
    eta_error_seconds: float | None = None


class JobError(_Response):
    code: str
    message: str


class JobWarning(_Response):
    code: str
    message: str


class JobResult(_Response):
    repo_id: str
    revision: str
    removed_blocks: tuple[int, ...]
    kept_blocks: tuple[int, ...]
    warnings: tuple[JobWarning, ...] = ()


class QueuePosition(_Response):
    """The position of a queued job; 1 starts next."""

    position: int | None = None
    estimated_start_at: datetime | None = None


class Job(_Response):
    """A job; `spec` is its resolved specification as JSON, `route` the kind of worker that may run it."""

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
    notice: str | None = None
    retry_of: str | None = None
    retried_as: str | None = None
    links: dict[str, str] = Field(default_factory=dict)

    @property
    def is_terminal(self) -> bool:
        return self.status in TERMINAL


class JobEvent(_Response):
    seq: int
    type: str
    at: datetime
    attempt: int
    data: dict[str, object] = Field(default_factory=dict)


class Metric(_Response):
    """One measured value. JSON has NaN and infinities as strings; here they are numbers."""

    name: str
    stage: str
    block: int | None = None
    candidate: str | None = None
    value: float
    unit: str
    at: datetime


class Family(_Response):
    """A model family: the methods and map structures that it supports, or the reason why it is refused."""

    model_type: str
    supported: bool = True
    methods: tuple[str, ...]
    structures: tuple[str, ...] = ()
    reason: str | None = None


class FieldError(_Response):
    field: str = ""
    value: object = None
    message: str


class Problem(_Response):
    """An `application/problem+json` body (RFC 9457)."""

    type: str = "about:blank"
    title: str = ""
    status: int = 0
    detail: str = ""
    code: str = ""
    errors: tuple[FieldError, ...] = ()


class Page(_Response, Generic[T]):
    """One page of a list; `next_cursor` is `None` on the last one."""

    items: tuple[T, ...]
    next_cursor: str | None = None
