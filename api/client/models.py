"""The service's responses as a client reads them. Pydantic only: a client needs no web framework.

Unknown fields are kept, so that an older client works with a newer service. The service's own strict bodies are in
`api.schemas`.
"""

from datetime import datetime
from typing import Generic, TypeVar

from pydantic import Field

from api.client.responses.base import Response
from api.client.responses.results import Gate, JobSummary

TERMINAL = frozenset({"succeeded", "failed", "cancelled"})
"""The statuses in which a job has ended; also the types of its last event."""

T = TypeVar("T")


class JobProgress(Response):
    """`overall` is the completed fraction of the job, `stage` that of its current stage, both from 0 to 1."""

    overall: float
    stage: float | None = None
    eta_seconds: float | None = None
    eta_error_seconds: float | None = None


class JobError(Response):
    code: str
    message: str


class JobWarning(Response):
    code: str
    message: str


class JobResult(Response):
    repo_id: str
    revision: str
    removed_blocks: tuple[int, ...]
    kept_blocks: tuple[int, ...]
    warnings: tuple[JobWarning, ...] = ()


class QueuePosition(Response):
    """The position of a queued job; 1 starts next."""

    position: int | None = None
    estimated_start_at: datetime | None = None


class Webhook(Response):
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


class Try(Response):
    """One try to send a message: the status of the response, or a word for what went wrong."""

    number: int
    at: datetime
    status: int | None = None
    error: str | None = None
    seconds: float


class Delivery(Response):
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


class Job(Response):
    """A job; `spec` is its resolved specification as JSON, `route` the kind of worker that may run it.

    `webhook` is set in the response to a `submit` that asked for one.
    """

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
    summary: JobSummary | None = None
    gate: Gate | None = None
    queue: QueuePosition | None = None
    webhook: Webhook | None = None
    notice: str | None = None
    retry_of: str | None = None
    retried_as: str | None = None
    links: dict[str, str] = Field(default_factory=dict)

    @property
    def is_terminal(self) -> bool:
        return self.status in TERMINAL


class JobEvent(Response):
    """`job_id` and `position` are set where the events of all jobs are listed or streamed."""

    seq: int
    job_id: str | None = None
    position: int | None = None
    type: str
    at: datetime
    attempt: int
    data: dict[str, object] = Field(default_factory=dict)


class LogLine(Response):
    """A line that the runner wrote; `number` counts from 1."""

    number: int
    at: datetime
    attempt: int
    text: str


class Worker(Response):
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


class CancelledJob(Response):
    """A job of a bulk cancel: `cancelled`, or `running` until its worker has stopped it."""

    id: str
    status: str


class CancelledJobs(Response):
    """One answer to a bulk cancel. `more`: others match."""

    items: tuple[CancelledJob, ...]
    more: bool = False


class Metric(Response):
    """One measured value. JSON has NaN and infinities as strings; here they are numbers."""

    name: str
    stage: str
    block: int | None = None
    candidate: str | None = None
    value: float
    unit: str
    at: datetime


class Family(Response):
    """A model family: the methods and map structures that it supports, or the reason why it is refused."""

    model_type: str
    supported: bool = True
    methods: tuple[str, ...]
    structures: tuple[str, ...] = ()
    reason: str | None = None


class ApiKey(Response):
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


class OwnerSettings(Response):
    """Where results of an owner may go; `None`: where those of everybody may."""

    owner: str
    output_namespaces: tuple[str, ...] | None = None


class Credential(Response):
    """A token for the Hub that the service keeps under a name; the token itself is not here."""

    name: str
    created_at: datetime
    updated_at: datetime


class FieldError(Response):
    field: str = ""
    value: object = None
    message: str


class Problem(Response):
    """An `application/problem+json` body (RFC 9457)."""

    type: str = "about:blank"
    title: str = ""
    status: int = 0
    detail: str = ""
    code: str = ""
    errors: tuple[FieldError, ...] = ()


class Page(Response, Generic[T]):
    """One page of a list; `next_cursor` is `None` on the last one."""

    items: tuple[T, ...]
    next_cursor: str | None = None
