"""The responses of the service that are not of jobs (`replaceme_core.shapes`), as a client reads them."""

from datetime import datetime
from typing import Generic, TypeVar

from pydantic import Field

from replaceme_core import shapes
from replaceme_core.shapes import QueuePosition, Shape

TERMINAL = frozenset({"succeeded", "failed", "cancelled"})
"""The statuses in which a job has ended; also the types of its last event."""

T = TypeVar("T")


class Webhook(Shape):
    """A webhook. `secret` is set in the responses that make one, and in no other."""

    id: str
    url: str
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
    secret: str | None = Field(default=None, repr=False)


class Try(Shape):
    """One try to send a message: the status of the response, or a word for what went wrong."""

    number: int
    at: datetime
    status: int | None = None
    error: str | None = None
    seconds: float


class Delivery(Shape):
    """One message to one webhook; `id` is its `webhook-id`."""

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

    body: str


class Job(shapes.Job):
    """A job; `spec` is its resolved specification as JSON. `queue` is null unless the job is queued.

    `webhook` and `notice` are set in the response to a `submit`: the webhook that was asked for, and what to know of a
    repeated request.
    """

    spec: dict[str, object]
    queue: QueuePosition | None = None
    webhook: Webhook | None = None
    notice: str | None = None
    links: dict[str, str] = Field(default_factory=dict)

    @property
    def is_terminal(self) -> bool:
        return self.status in TERMINAL


class JobEvent(shapes.JobEvent):
    """`job_id` and `position` are set where the events of all jobs are listed or streamed."""

    job_id: str | None = None
    position: int | None = None
    data: dict[str, object] = Field(default_factory=dict)


class Worker(Shape):
    """A worker; `jobs` are those of the caller that it runs."""

    name: str
    host: str = ""
    kinds: tuple[str, ...]
    device: str
    started_at: datetime
    heartbeat_at: datetime
    alive: bool
    busy: bool
    jobs: tuple[str, ...] = ()


class CancelledJob(Shape):
    """A job of a bulk cancel: `cancelled`, or `running` until its worker has stopped it."""

    id: str
    status: str


class CancelledJobs(Shape):
    """One answer to a bulk cancel. `more`: others match."""

    items: tuple[CancelledJob, ...]
    more: bool = False


class Family(Shape):
    """A model family: the methods and map structures that it supports, or the reason why it is refused."""

    model_type: str
    supported: bool = True
    methods: tuple[str, ...]
    structures: tuple[str, ...] = ()
    reason: str | None = None


class ApiKey(Shape):
    """An API key without its text; `start` is the beginning of it. `limits` are null where the service decides."""

    id: str
    owner: str
    name: str
    start: str
    scopes: tuple[str, ...]
    limits: dict[str, int | None] = Field(default_factory=dict)
    is_live: bool
    created_at: datetime
    expires_at: datetime | None = None
    last_used_at: datetime | None = None
    revoked_at: datetime | None = None


class CreatedApiKey(ApiKey):
    """A new key with its text, which is shown only now."""

    key: str


class OwnerSettings(Shape):
    """Where results of an owner may go; `None`: where those of everybody may."""

    owner: str
    output_namespaces: tuple[str, ...] | None = None


class Credential(Shape):
    """A token for the Hub that the service keeps under a name; the token itself is not here."""

    name: str
    created_at: datetime
    updated_at: datetime


class FieldError(Shape):
    field: str = ""
    value: object = None
    message: str


class Problem(Shape):
    """An `application/problem+json` body (RFC 9457)."""

    type: str = "about:blank"
    title: str = ""
    status: int = 0
    detail: str = ""
    code: str = ""
    errors: tuple[FieldError, ...] = ()


class Page(Shape, Generic[T]):
    """One page of a list; `next_cursor` is `None` on the last one."""

    items: tuple[T, ...]
    next_cursor: str | None = None


# Plans


class Notice(Shape):
    """`code` is for programs, `message` one sentence for a person."""

    code: str
    message: str
    field: str | None = None


class PlannedModel(Shape):
    repo_id: str
    revision: str | None = None
    family: str | None = None
    supported: bool
    methods: tuple[str, ...] = ()


class StagePlan(Shape):
    """Seconds and bytes; the bytes are `None` for stages that run no model."""

    stage: str
    seconds: float
    host_bytes: int | None = None
    gpu_bytes: int | None = None


class Trials(Shape):
    """Of a search for the deepest cut: how many at most, and the seconds of all of them."""

    at_most: int
    seconds: float


class Estimate(Shape):
    """What a job is expected to take. The HTTP reference explains the fields of `blocks`, `bytes` and the others."""

    method: str
    loading: str
    dtype: str
    samples: int
    max_length: int
    blocks: dict[str, int | str]
    parameters: dict[str, int]
    bytes: dict[str, int]
    memory: dict[str, int]
    time: dict[str, float | str]
    stages: tuple[StagePlan, ...]
    trials: Trials | None = None


class WorkerPlan(Shape):
    """`route` is the kind of worker that would run the job, `None` any; `alive`: whether there is one now."""

    route: str | None = None
    estimated_for: str
    alive: bool


class Plan(Shape):
    """What a job would take. A submission is refused if there are `refusals`."""

    model: PlannedModel
    estimate: Estimate | None = None
    worker: WorkerPlan | None = None
    warnings: tuple[Notice, ...] = ()
    refusals: tuple[Notice, ...] = ()
