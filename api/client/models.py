"""Responses in which a client reads more than all others (`replaceme_core.shapes`) do."""

from pydantic import Field

from replaceme_core import shapes
from replaceme_core.shapes import QueuePosition, Shape

TERMINAL = frozenset({"succeeded", "failed", "cancelled"})
"""The statuses in which a job has ended; also the types of its last event."""


class Webhook(shapes.Webhook):
    """A webhook. `secret` is set in the responses that make one, and in no other."""

    secret: str | None = Field(default=None, repr=False)


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


class FieldError(Shape):
    field: str = ""
    value: object = None
    message: str


class Problem(Shape):
    """An `application/problem+json` body (RFC 9457). Nothing is required: a proxy on the way may write one too."""

    type: str = "about:blank"
    title: str = ""
    status: int = 0
    detail: str = ""
    code: str = ""
    errors: tuple[FieldError, ...] = ()
