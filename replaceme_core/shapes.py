"""Jobs as the service shows them: in its responses, to clients, and in the messages of webhooks.

Pydantic only, so that a client needs neither a web framework nor a database. Types are wide, and fields that this
version does not know are kept: an older client works with a newer service. The records of the ledger and the bodies in
`api.bodies` are of the same classes, or of subclasses that name the values.
"""

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field


class Shape(BaseModel):
    """Frozen; made of any object that has the attributes."""

    model_config = ConfigDict(
        frozen=True, extra="allow", from_attributes=True, json_schema_serialization_defaults_required=True
    )


class JobProgress(Shape):
    """`overall` is the completed fraction of the job, `stage` that of its current stage, both from 0 to 1.

    `eta_error_seconds` is how far `eta_seconds` may be off, judged by how it has moved so far and by what is overdue.
    """

    overall: float
    stage: float | None = None
    eta_seconds: float | None = None
    eta_error_seconds: float | None = None


class JobError(Shape):
    """Why a job failed: a code and one sentence."""

    code: str
    message: str


class JobWarning(Shape):
    """What to know before using a result; `code` is for programs."""

    code: str
    message: str


class JobResult(Shape):
    """Where the result of a job is, which blocks of the source model were removed and kept, and warnings."""

    repo_id: str
    revision: str
    removed_blocks: tuple[int, ...]
    kept_blocks: tuple[int, ...]
    warnings: tuple[JobWarning, ...] = ()


class Change(Shape):
    """Of the original model and of the result; null: not measured."""

    before: float | None = None
    after: float | None = None


class JobSummary(Shape):
    """What a result is. `perplexity` is on text that calibration did not see."""

    blocks: Change
    parameters: Change
    perplexity: Change


class Criterion(Shape):
    """A criterion of a gate: what was measured, the limits (null: none), and whether the value is within them."""

    name: str
    value: float
    min: float | None = None
    max: float | None = None
    passed: bool


class Trial(Shape):
    """A trial of a search for the deepest cut: how many `blocks` it removes, and what its result is worth.

    `measured` are values by the names of criteria, also of those that the gate has not. `problem` says why there are
    none.
    """

    blocks: int
    removed_blocks: tuple[int, ...] = ()
    passed: bool
    criteria: tuple[Criterion, ...] = ()
    measured: dict[str, float] = Field(default_factory=dict)
    seconds: float
    problem: str | None = None


class Gate(Shape):
    """What became of a gate; `passed` if all criteria are. `trials`: of a search for the deepest cut, in order."""

    passed: bool
    criteria: tuple[Criterion, ...] = ()
    trials: tuple[Trial, ...] = ()


class QueuePosition(Shape):
    """The position of a queued job; 1 starts next, null means that the queue is too long to count.

    `estimated_start_at` is an estimate from the jobs before it; null means unknown.
    """

    position: int | None = None
    estimated_start_at: datetime | None = None


class Job(Shape):
    """A job. `route` is the kind of worker that may run it; null means any.

    `summary` is that of a job that succeeded, `gate` that of a result that was judged. `retry_of` is the job that this
    one repeats, `retried_as` the latest that repeats this one.
    """

    id: str
    status: str
    route: str | None = None  # the name of `worker_kind` in this API
    stage: str | None = None
    progress: JobProgress
    attempt: int
    labels: dict[str, str] = Field(default_factory=dict)
    spec: object
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    error: JobError | None = None
    result: JobResult | None = None
    summary: JobSummary | None = None
    gate: Gate | None = None
    retry_of: str | None = None
    retried_as: str | None = None


class JobEvent(Shape):
    """One entry of a job's history. `seq` counts from 1."""

    seq: int
    type: str
    at: datetime
    attempt: int
    data: object


class Metric(Shape):
    """One measured value of a job's current attempt."""

    name: str
    stage: str
    block: int | None = None
    candidate: str | None = None
    value: float
    unit: str
    at: datetime


class LogLine(Shape):
    """A line that the runner wrote; `number` counts from 1. Secrets and folders are removed."""

    number: int
    at: datetime
    attempt: int
    text: str
