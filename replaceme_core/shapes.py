"""What the service shows: in its responses, to clients, and in the messages of webhooks.

Pydantic only, so that a client needs neither a web framework nor a database. Types are wide, and fields that this
version does not know are kept: an older client works with a newer service. The records of the ledger and the bodies of
responses are of the same classes, or of subclasses that name the values.
"""

from datetime import datetime
from typing import Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field

T = TypeVar("T")
BEGINNING_OF_ID = "[0-9a-f]{4,8}(-[0-9a-f-]{0,26})?"
"""Of a job, shorter than all of it."""


class Shape(BaseModel):
    """Frozen; made of any object that has the attributes."""

    model_config = ConfigDict(
        frozen=True, extra="allow", from_attributes=True, json_schema_serialization_defaults_required=True
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **_: object) -> None:
        """What only narrows the types of another shape has its docstring."""
        if cls.__doc__ is None and cls.__base__ is not Shape:
            cls.__doc__ = cls.__base__.__doc__

    @classmethod
    def of(cls, source: object, **more: object) -> Self:
        """Of the attributes of `source`, such as a row or a record, and of fields that it has not, or has otherwise."""
        return cls.model_validate({name: getattr(source, name) for name in cls.model_fields if name not in more} | more)


class Page(Shape, Generic[T]):
    """One page of a list. `next_cursor` requests the next page; it is null on the last one."""

    items: tuple[T, ...]
    next_cursor: str | None = None


class Notice(Shape):
    """What to know: `code` is for programs, `message` one sentence for a person, `field` the one to change."""

    code: str
    message: str
    field: str | None = None


# Jobs


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


class CancelledJob(Shape):
    """A job of a bulk cancel: `cancelled`, or `running` until its worker has stopped it."""

    id: str
    status: str


class CancelledJobs(Shape):
    """What a bulk cancel has done. `more`: others match; send the request again."""

    items: tuple[CancelledJob, ...]
    more: bool = False


# Webhooks


class Webhook(Shape):
    """A webhook without its secret. Messages are sent as long as the key `key_id` may read jobs.

    `previous_secret_expires_at`: until when the secret before the last rotation signs as well.
    """

    id: str
    url: str = Field(repr=False)
    events: tuple[str, ...]
    labels: dict[str, str] = Field(default_factory=dict)
    payload: str
    enabled: bool
    disabled_by: str | None = None
    disabled_at: datetime | None = None
    job_id: str | None = None
    signed_by: str | None = None
    key_id: str | None = None
    previous_secret_expires_at: datetime | None = None
    created_at: datetime


class Try(Shape):
    """One try to send a message: the status of the response, or a word for what went wrong. `number` counts from 1."""

    number: int
    at: datetime
    status: int | None = None
    error: str | None = None
    seconds: float


class Delivery(Shape):
    """One message to one webhook, with all tries to send it; `id` is its `webhook-id`."""

    id: str
    type: str
    job_id: str
    seq: int
    state: str
    created_at: datetime
    next_try_at: datetime | None = None
    finished_at: datetime | None = None
    tries: tuple[Try, ...] = ()


class WholeDelivery(Delivery):
    """With what is sent, to the byte."""

    body: str = Field(repr=False)


# API keys, and what their owners have


class KeyLimits(Shape):
    """Limits of one key; null: the default of the service. 0: no limit.

    `requests_per_minute`; `jobs` that are queued or running; of the jobs that were submitted with this key,
    `running_jobs` at the same time (no setting has it); bytes of the weights of a model; calibration tokens.
    """

    requests_per_minute: int | None = None
    jobs: int | None = None
    running_jobs: int | None = None
    model_bytes: int | None = None
    tokens: int | None = None


class ApiKey(Shape):
    """An API key without its text; `start` is the beginning of the text, to recognise it by."""

    id: str
    owner: str
    name: str
    start: str
    scopes: tuple[str, ...]
    limits: KeyLimits = KeyLimits()
    is_live: bool
    created_at: datetime
    expires_at: datetime | None = None
    last_used_at: datetime | None = None
    revoked_at: datetime | None = None


class CreatedApiKey(ApiKey):
    """A new key. `key` is its text: it is shown here once, and cannot be shown again."""

    key: str = Field(repr=False)


class OwnerSettings(Shape):
    """Where results of an owner may go; null: where those of everybody may."""

    owner: str
    output_namespaces: tuple[str, ...] | None = None


class Credential(Shape):
    """A token for the Hub that the service keeps under a name; the token itself is not here."""

    name: str
    created_at: datetime
    updated_at: datetime


# The service


class Worker(Shape):
    """A worker. `alive` is false once it has missed its heartbeats; it is listed for another hour.

    `busy`: it runs a job; `jobs` are those of yours.
    """

    name: str
    host: str = ""
    kinds: tuple[str, ...]
    device: str
    sandbox: str = ""
    started_at: datetime
    heartbeat_at: datetime
    alive: bool
    busy: bool
    jobs: tuple[str, ...] = ()


class Family(Shape):
    """A model type. `reason` explains why it is refused or, if it is supported, which of its models are not.

    `inputs` is what a supported one reads: text or images.
    """

    model_type: str
    supported: bool = True
    inputs: str | None = None
    methods: tuple[str, ...] = ()
    structures: tuple[str, ...] = ()
    reason: str | None = None


# Plans


class PlannedModel(Shape):
    """`methods` and `structures` are those that the family supports. `revision` is null if there is no such model."""

    repo_id: str
    revision: str | None = None
    family: str | None = None
    supported: bool
    methods: tuple[str, ...] = ()
    structures: tuple[str, ...] = ()


class Count(Shape):
    before: int
    after: int


class BlockCount(Count):
    """`removed` is for people: "8 of 30"."""

    removed: str


class PlannedBytes(Shape):
    """`download`: from the Hub. `write`: the result. `disk`: the most that lies on the worker's disk at once."""

    download: int
    write: int
    disk: int


class PlannedMemory(Shape):
    """The highest peaks of all stages, in bytes."""

    host_bytes: int
    gpu_bytes: int


class PlannedTime(Shape):
    """The job is expected to take from `low_seconds` to `high_seconds`.

    `basis`: `measured`, by `jobs` earlier jobs on this kind of worker, or `model`, by a stated one.
    """

    seconds: float
    low_seconds: float
    high_seconds: float
    basis: str
    jobs: int


class StagePlan(Shape):
    """Peak memory in bytes, null for stages without a model, and the expected seconds. `gpu_bytes` is 0 on a CPU."""

    stage: str
    seconds: float
    host_bytes: int | None = None
    gpu_bytes: int | None = None


class Trials(Shape):
    """Of a search for the deepest cut: how many trials there are at most, and the expected seconds of all of them."""

    at_most: int
    seconds: float


class Estimate(Shape):
    """What the worker is expected to decide, and what that takes. `trials` is null unless the deepest cut is asked for.

    Then `blocks`, `parameters` and `bytes` are those of the deepest one.
    """

    method: str
    loading: str
    dtype: str
    samples: int
    max_length: int
    blocks: BlockCount
    parameters: Count
    bytes: PlannedBytes
    memory: PlannedMemory
    time: PlannedTime
    stages: tuple[StagePlan, ...]
    trials: Trials | None = None


class WorkerPlan(Shape):
    """The kind of worker that would run the job; null means any. `alive`: whether there is one now."""

    route: str | None = None  # the name of the kind in this API
    estimated_for: str
    alive: bool


class Plan(Shape):
    """What a job would take. `estimate` is null where a refusal leaves nothing to compute with.

    A submission of the same request is refused if there are `refusals`.
    """

    model: PlannedModel
    estimate: Estimate | None = None
    worker: WorkerPlan | None = None
    warnings: tuple[Notice, ...] = ()
    refusals: tuple[Notice, ...] = ()
