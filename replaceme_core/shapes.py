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
        frozen=True,
        extra="allow",
        from_attributes=True,
        json_schema_serialization_defaults_required=True,
        use_attribute_docstrings=True,
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **_: object) -> None:
        """What only narrows the types of another shape has its docstrings."""
        for base in (one for one in cls.__mro__[1:] if issubclass(one, Shape) and one is not Shape):
            cls.__doc__ = cls.__doc__ or base.__doc__
            for name, field in base.model_fields.items():
                own = cls.model_fields[name]
                own.description = own.description or field.description
        cls.model_rebuild(force=True)

    @classmethod
    def of(cls, source: object, **more: object) -> Self:
        """Of the attributes of `source`, such as a row or a record, and of fields that it has not, or has otherwise."""
        return cls.model_validate({name: getattr(source, name) for name in cls.model_fields if name not in more} | more)


class Page(Shape, Generic[T]):
    """One page of a list."""

    # docstrings of `Page[Job]` and the like are looked for in every frame of the stack, which takes .1 s for each
    model_config = ConfigDict(use_attribute_docstrings=False)

    items: tuple[T, ...] = Field(description="What is on this page, in the order of the list.")
    next_cursor: str | None = Field(
        default=None, description="Requests the next page, as `cursor`; null on the last one."
    )


class Reason(Shape):
    """What is the matter."""

    code: str
    """For programs."""
    message: str
    """One sentence for a person."""


class Notice(Reason):
    """What to know."""

    field: str | None = None
    """The field of the request to change; null: none."""


# Jobs


class JobProgress(Shape):
    """How far a job is, and how long it is expected to go on."""

    overall: float
    """Completed fraction of the job, from 0 to 1."""
    stage: float | None = None
    """Completed fraction of the current stage, from 0 to 1; null: no stage is running."""
    eta_seconds: float | None = None
    """Expected seconds to the end; null: unknown."""
    eta_error_seconds: float | None = None
    """How far `eta_seconds` may be off, judged by how it has moved so far and by what is overdue."""


class JobError(Reason):
    """Why a job failed."""


class JobWarning(Reason):
    """What to know before using a result."""


class JobResult(Shape):
    """Where the result of a job is, and what was removed."""

    repo_id: str
    """Repository of the result, as org/name."""
    revision: str
    """Commit of the result."""
    removed_blocks: tuple[int, ...]
    """Removed blocks of the source model, counted from 0."""
    kept_blocks: tuple[int, ...]
    """Kept blocks of the source model, in order."""
    warnings: tuple[JobWarning, ...] = ()
    """What to know before using the result."""


class Change(Shape):
    """Of the original model and of the result; null: not measured."""

    before: float | None = None
    """Of the original model."""
    after: float | None = None
    """Of the result."""


class JobSummary(Shape):
    """What a result is."""

    blocks: Change
    """Number of blocks."""
    parameters: Change
    """Number of parameters."""
    perplexity: Change
    """On text that calibration did not see."""


class Criterion(Shape):
    """A criterion of a gate, and whether the measured value is within its limits."""

    name: str
    """Name of the criterion, as in the request; `tasks.NAME` is that of a task."""
    value: float
    """What was measured."""
    min: float | None = None
    """Least value that passes; null: no limit."""
    max: float | None = None
    """Greatest value that passes; null: no limit."""
    passed: bool
    """Whether the value is within the limits."""


class Trial(Shape):
    """A trial of a search for the deepest cut, and what its result is worth."""

    blocks: int
    """Number of blocks that it removes."""
    removed_blocks: tuple[int, ...] = ()
    """Blocks that it removes, counted from 0."""
    passed: bool
    """Whether all criteria are met."""
    criteria: tuple[Criterion, ...] = ()
    """The criteria of the gate as they were measured; empty where the trial ended with a problem."""
    measured: dict[str, float] = Field(default_factory=dict)
    """Values by the names of criteria, also of those that the gate has not."""
    seconds: float
    """How long it took."""
    problem: str | None = None
    """Why nothing was measured; null: it was."""


class Gate(Shape):
    """What became of a gate."""

    passed: bool
    """Whether all criteria are met."""
    criteria: tuple[Criterion, ...] = ()
    """The criteria of the result that was judged."""
    trials: tuple[Trial, ...] = ()
    """Of a search for the deepest cut, in order; else empty."""


class QueuePosition(Shape):
    """Where a queued job is in its queue."""

    position: int | None = None
    """1 starts next; null: the queue is too long to count."""
    estimated_start_at: datetime | None = None
    """Estimated from the jobs before it; null: unknown."""


class Job(Shape):
    """A job."""

    id: str
    """UUID of the job."""
    status: str
    """queued, running, succeeded, failed or cancelled."""
    route: str | None = None  # the name of `worker_kind` in this API
    """Kind of worker that may run it; null: any."""
    stage: str | None = None
    """Current stage, or the one in which the job ended; null: none has begun."""
    progress: JobProgress
    """How far the job is."""
    attempt: int
    """Number of the current attempt, from 1; 0: none has begun."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Labels that came with the request."""
    spec: object
    """The specification as it is carried out: commits instead of branches, and every default."""
    created_at: datetime
    """When it was submitted."""
    started_at: datetime | None = None
    """When its first attempt began; null: not yet."""
    finished_at: datetime | None = None
    """When it ended; null: not yet."""
    error: JobError | None = None
    """Why it failed; null unless it did."""
    result: JobResult | None = None
    """Where the result is; null until there is one."""
    summary: JobSummary | None = None
    """What the result is; null unless the job succeeded."""
    gate: Gate | None = None
    """How the result was judged; null without a gate."""
    retry_of: str | None = None
    """Id of the job that this one repeats; null: none."""
    retried_as: str | None = None
    """Id of the latest job that repeats this one; null: none."""


class JobEvent(Shape):
    """One entry of a job's history."""

    seq: int
    """Counts from 1 within the job."""
    type: str
    """What happened."""
    at: datetime
    """When it happened."""
    attempt: int
    """Number of the attempt in which it happened; 0: before the first one."""
    data: object
    """Details, which depend on the type."""


class Metric(Shape):
    """One measured value of a job's current attempt."""

    name: str
    """What was measured."""
    stage: str
    """Stage in which it was measured."""
    block: int | None = None
    """Block that it is of, counted from 0; null: of no single block."""
    candidate: str | None = None
    """Set of removed blocks that it is of, or the like; null: of no single one."""
    value: float
    """The measured value."""
    unit: str
    """Unit of the value; empty for a plain number."""
    at: datetime
    """When it was measured."""


class LogLine(Shape):
    """A line that the runner wrote. Secrets and folders are removed."""

    number: int
    """Counts from 1."""
    at: datetime
    """When it was written."""
    attempt: int
    """Number of the attempt that wrote it."""
    text: str
    """The line without its end."""


class CancelledJob(Shape):
    """A job of a bulk cancel."""

    id: str
    """UUID of the job."""
    status: str
    """`cancelled`, or `running` until its worker has stopped it."""


class CancelledJobs(Shape):
    """What a bulk cancel has done."""

    items: tuple[CancelledJob, ...]
    """The jobs that are cancelled, or will be."""
    more: bool = False
    """Whether others match: send the request again."""


# Webhooks


class Webhook(Shape):
    """A webhook without its secret."""

    id: str
    """UUID of the webhook."""
    url: str = Field(repr=False)
    """Where its messages go."""
    events: tuple[str, ...]
    """Types of events that it is sent for."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Only jobs with all of these labels; empty: all jobs."""
    payload: str
    """`thin` has ids, `full` the whole job."""
    enabled: bool
    """Whether messages are sent."""
    disabled_by: str | None = None
    """Why it is off: `owner` turned it off, or its `receiver` answered 410 Gone; null: it is on."""
    disabled_at: datetime | None = None
    """When it was turned off; null: it is on."""
    job_id: str | None = None
    """Job that it is for; null: all of its owner's."""
    signed_by: str | None = None
    """Id of the webhook whose secret signs for it; null: its own."""
    key_id: str | None = None
    """API key that made it or changed it last: messages are sent while it may read jobs; null: none is needed."""
    previous_secret_expires_at: datetime | None = None
    """Until when the secret before the last rotation signs as well; null: it does not."""
    created_at: datetime
    """When it was made."""


class Try(Shape):
    """One try to send a message."""

    number: int
    """Counts from 1."""
    at: datetime
    """When it began."""
    status: int | None = None
    """HTTP status of the response; null: there was none."""
    error: str | None = None
    """A word for what went wrong; null: nothing did."""
    seconds: float
    """How long it took."""


class Delivery(Shape):
    """One message to one webhook, with all tries to send it."""

    id: str
    """The `webhook-id` of the message."""
    type: str
    """Type of the event that it is about."""
    job_id: str
    """Job that it is about."""
    seq: int
    """`seq` of the event."""
    state: str
    """What became of it."""
    created_at: datetime
    """When the event happened."""
    next_try_at: datetime | None = None
    """When it is tried next; null: no more."""
    finished_at: datetime | None = None
    """When it was delivered, or given up; null: not yet."""
    tries: tuple[Try, ...] = ()
    """All tries so far, oldest first."""


class MessageData(Shape):
    """What has happened to a job."""

    job_id: str
    """UUID of the job."""
    seq: int
    """`seq` of the event: counts from 1 within the job."""
    attempt: int
    """Number of the attempt in which it happened; 0: before the first one."""
    status: str
    """Status of the job right after the event."""
    labels: dict[str, str]
    """Labels of the job."""
    event: object
    """`data` of the event."""
    job: Job | None = None
    """With the payload `full`, the job as it was right after the event; else absent."""


class Message(Shape):
    """The body of a message of a webhook, as Standard Webhooks recommends (https://www.standardwebhooks.com)."""

    type: str
    """`job.` and the type of the event."""
    timestamp: datetime
    """When the event happened."""
    data: MessageData
    """What has happened."""


class WholeDelivery(Delivery):
    """With what is sent, to the byte."""

    body: str = Field(repr=False)
    """What is sent, to the byte."""


# API keys, and what their owners have


_LARGEST = 2**31 - 1
_LARGEST_SIZE = 2**53 - 1  # the largest whole number that every JSON reader keeps


class KeyLimits(Shape):
    """Limits of one key; null: the default of the service. 0: no limit."""

    requests_per_minute: int | None = Field(default=None, ge=0, le=_LARGEST)
    """Requests within a minute."""
    jobs: int | None = Field(default=None, ge=0, le=_LARGEST)
    """Jobs that are queued or running."""
    running_jobs: int | None = Field(default=None, ge=0, le=_LARGEST)
    """Jobs of this key that run at the same time; null: no limit."""
    model_bytes: int | None = Field(default=None, ge=0, le=_LARGEST_SIZE)
    """Bytes of the weights of a model."""
    tokens: int | None = Field(default=None, ge=0, le=_LARGEST_SIZE)
    """Calibration tokens of a job."""


class ApiKey(Shape):
    """An API key without its text."""

    id: str
    """UUID of the key."""
    owner: str
    """Whose jobs it sees."""
    name: str
    """What it is called."""
    start: str
    """Beginning of its text, to recognise it by."""
    scopes: tuple[str, ...]
    """What it may do."""
    limits: KeyLimits = KeyLimits()
    """Its limits."""
    is_live: bool
    """Whether it is accepted now: neither revoked nor expired."""
    created_at: datetime
    """When it was created."""
    expires_at: datetime | None = None
    """When it expires; null: never."""
    last_used_at: datetime | None = None
    """When it was last accepted, to the minute; null: never."""
    revoked_at: datetime | None = None
    """When it was revoked; null: it was not."""


class CreatedApiKey(ApiKey):
    """A new key."""

    key: str = Field(repr=False)
    """Its text: it is shown here once, and cannot be shown again."""


class OwnerSettings(Shape):
    """What is set for an owner."""

    owner: str
    """Name of the owner."""
    output_namespaces: tuple[str, ...] | None = None
    """Where results may go; null: where those of everybody may."""


class Credential(Shape):
    """A token for the Hub that the service keeps under a name; the token itself is not here."""

    name: str
    """What requests call it."""
    created_at: datetime
    """When it was first stored."""
    updated_at: datetime
    """When its token was last replaced."""


# The service


class Worker(Shape):
    """A worker, listed for an hour after its last heartbeat."""

    name: str
    """What it calls itself."""
    host: str = ""
    """Machine that it runs on."""
    kinds: tuple[str, ...]
    """Kinds of jobs that it runs."""
    device: str
    """Device of its models."""
    sandbox: str = ""
    """How the process is confined that loads models."""
    started_at: datetime
    """When it started."""
    heartbeat_at: datetime
    """When its last heartbeat was."""
    alive: bool
    """False once it has missed its heartbeats."""
    busy: bool
    """Whether it runs a job."""
    jobs: tuple[str, ...] = ()
    """Ids of the jobs of yours that it runs."""


class Family(Shape):
    """A model type."""

    model_type: str
    """The `model_type` of config.json."""
    supported: bool = True
    """Whether its models are compressed."""
    inputs: str | None = None
    """What it reads: text or images; null if it is refused."""
    methods: tuple[str, ...] = ()
    """Methods that work for it."""
    structures: tuple[str, ...] = ()
    """Structures of maps that its blocks absorb, the default first."""
    reason: str | None = None
    """Why it is refused or, if it is supported, which of its models are."""


# Plans


class PlannedModel(Shape):
    """The model of a plan."""

    repo_id: str
    """Repository of the model, as org/name."""
    revision: str | None = None
    """Commit of the model; null if there is no such model."""
    family: str | None = None
    """The `model_type` of config.json; null: unknown."""
    supported: bool
    """Whether the family is supported."""
    methods: tuple[str, ...] = ()
    """Methods that work for the family."""
    structures: tuple[str, ...] = ()
    """Structures of maps that its blocks absorb, the default first."""


class Count(Shape):
    before: int
    """Of the original model."""
    after: int
    """Of the result."""


class BlockCount(Count):
    """`removed` is for people: "8 of 30"."""

    removed: str
    """For people: "8 of 30"."""


class PlannedBytes(Shape):
    """Bytes that move."""

    download: int
    """From the Hub."""
    write: int
    """Of the result."""
    disk: int
    """The most that lies on the worker's disk at once."""


class PlannedMemory(Shape):
    """The highest peaks of all stages."""

    host_bytes: int
    """Bytes of the machine's memory."""
    gpu_bytes: int
    """Bytes of the GPU's memory; 0 on a CPU."""


class PlannedTime(Shape):
    """How long the job is expected to take."""

    seconds: float
    """Expected seconds."""
    low_seconds: float
    """At least about this."""
    high_seconds: float
    """At most about this."""
    basis: str
    """`measured`: by earlier jobs on this kind of worker; `model`: by a stated model of the work."""
    jobs: int
    """Number of earlier jobs that it is measured by."""


class StagePlan(Shape):
    """What one stage is expected to take."""

    stage: str
    """Name of the stage."""
    seconds: float
    """Expected seconds."""
    host_bytes: int | None = None
    """Peak bytes of the machine's memory; null: a stage without a model."""
    gpu_bytes: int | None = None
    """Peak bytes of the GPU's memory; 0 on a CPU; null: a stage without a model."""


class Trials(Shape):
    """A search for the deepest cut."""

    at_most: int
    """Greatest number of trials."""
    seconds: float
    """Expected seconds of all of them."""


class Estimate(Shape):
    """What the worker is expected to decide, and what that takes. Of a search, the figures of the deepest cut."""

    method: str
    """Method that the worker takes."""
    loading: str
    """`whole`, or `blockwise`: one block at a time."""
    dtype: str
    """Data type of the computation."""
    samples: int
    """Sequences of calibration."""
    max_length: int
    """Greatest number of tokens of a sequence; of images, positions."""
    blocks: BlockCount
    """Number of blocks."""
    parameters: Count
    """Number of parameters."""
    bytes: PlannedBytes
    """What is downloaded, written and stored."""
    memory: PlannedMemory
    """Peak memory."""
    time: PlannedTime
    """How long it takes."""
    stages: tuple[StagePlan, ...]
    """What each stage takes, in order."""
    trials: Trials | None = None
    """Of a search for the deepest cut; else null."""


class WorkerPlan(Shape):
    """The kind of worker that would run the job."""

    route: str | None = None  # the name of the kind in this API
    """Kind of worker that may run it; null: any."""
    estimated_for: str
    """Kind of worker that the estimate is for."""
    alive: bool
    """Whether there is one now."""


class Plan(Shape):
    """What a job would take."""

    model: PlannedModel
    """The model, as far as it is known."""
    estimate: Estimate | None = None
    """What the job takes; null where a refusal leaves nothing to compute with."""
    worker: WorkerPlan | None = None
    """The kind of worker that would run it; null: unknown."""
    warnings: tuple[Notice, ...] = ()
    """What to know beforehand."""
    refusals: tuple[Notice, ...] = ()
    """Why a submission of the same request would be refused; empty: it would not."""
