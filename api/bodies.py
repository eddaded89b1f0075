"""Bodies of requests and responses that need no web framework: the command line checks and shows them, too.

The others stand with their routes, the request for a job in `request_bodies.py`.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, create_model

from replaceme_core import shapes
from replaceme_core.hardware import WorkerKind
from replaceme_core.ledger.keys import NewKey, Scope
from replaceme_core.ledger.reading import Attempt, StageTimes
from replaceme_core.ledger.states import EventType, JobStatus
from replaceme_core.request.admission import check_namespaces
from replaceme_core.request.fields import LONGEST_SECONDS, Frozen, Name, as_tuple, length, one_of
from replaceme_core.request.spec import CompressionSpec
from replaceme_core.runner.messages import Stage
from replaceme_core.shapes import KeyLimits, QueuePosition, Shape
from replaceme_core.wording import json_safe


class Parameters(BaseModel):
    """Query parameters. Unknown ones are refused for all routes (`refuse_unknown`)."""

    model_config = ConfigDict(frozen=True)


class PageQuery(Parameters):
    limit: Annotated[int, Field(ge=1, le=200)] = 50
    cursor: Annotated[str, Field(min_length=1, max_length=500)] | None = None


# Jobs


class LinksBody(Shape):
    self: str
    """The job."""
    cancel: str
    """Cancels it by POST."""
    retry: str
    """Submits it again by POST."""
    events: str
    """Its history."""
    metrics: str
    """What was measured."""
    logs: str
    """What its runner wrote."""
    report: str
    """What it came to."""

    @classmethod
    def at(cls, root: str, job_id: str) -> Self:
        """`root` is the path under which the service is mounted, usually ""."""
        here = f"{root}/jobs/{job_id}"
        return cls(**{name: here if name == "self" else f"{here}/{name}" for name in cls.model_fields})


class JobBody(shapes.Job):
    status: JobStatus
    route: WorkerKind | None = None
    stage: Stage | None = None
    spec: CompressionSpec
    links: LinksBody
    """Paths of this API."""


class WholeJobBody(JobBody):
    """A job with all that is known."""

    queue: QueuePosition | None
    """Its place in the queue; null unless it is queued."""
    stages: tuple[StageTimes, ...]
    """Stages of the current attempt."""
    attempts: tuple[Attempt, ...]
    """All attempts, oldest first."""


_OPTIONAL: Mapping[str, Any] = {
    name: (field.annotation, Field(default=None, description=field.description))
    for name, field in JobBody.model_fields.items()
}
JobPartBody = create_model(
    "JobPart",
    __doc__="A job in a list: all of its fields, or those that were asked for.",
    **_OPTIONAL,
)


# Events


class EventBody(shapes.JobEvent):
    """One entry of a job's history. `seq` counts from 1."""

    type: EventType
    data: Annotated[object, BeforeValidator(json_safe)]


class JobEventBody(EventBody):
    """An event among those of all your jobs."""

    position: int
    """Rises from event to event; it may have gaps."""
    job_id: str
    """The job that it is of."""


# API keys and their owners

MOST_OVERLAP_SECONDS = 2_592_000  # 30 days
KeyId = Annotated[str, StringConstraints(min_length=1, max_length=36)]
OwnerName = Annotated[str, StringConstraints(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.@-]*$")]
Scopes = Annotated[tuple[Annotated[Scope, one_of(Scope)], ...], BeforeValidator(as_tuple), length(1, len(Scope))]
Namespaces = Annotated[
    tuple[Annotated[str, StringConstraints(max_length=96)], ...],
    BeforeValidator(as_tuple),
    length(1, 100),
    BeforeValidator(lambda names: check_namespaces(names) if _are_texts(names) else names),
]


def _are_texts(names: object) -> bool:
    return isinstance(names, list) and all(isinstance(name, str) for name in names)


class KeyLimitsRequest(KeyLimits):
    model_config = ConfigDict(extra="forbid", strict=True)


class KeyRequest(Frozen):
    """A key to create."""

    name: Annotated[Name, Field(max_length=100)]
    """What it is called."""
    owner: OwnerName | None = None
    """Whose jobs it sees; null: those of the owner of the key that creates it."""
    scopes: Scopes = (Scope.JOBS_READ, Scope.JOBS_WRITE)
    """What it may do."""
    expires_in_seconds: int | None = Field(default=None, ge=1, le=10 * LONGEST_SECONDS)
    """Seconds after which it is refused; null: never."""
    limits: KeyLimitsRequest = KeyLimitsRequest()
    """Its limits."""

    def to_new(self, *, owner: str) -> NewKey:
        return NewKey(
            owner=self.owner or owner,
            name=self.name,
            scopes=frozenset(self.scopes),
            limits=KeyLimits.of(self.limits),
            expires_in_seconds=self.expires_in_seconds,
        )


class KeyRotationRequest(Frozen):
    """How the old key goes."""

    overlap_seconds: int = Field(default=86_400, ge=0, le=MOST_OVERLAP_SECONDS)
    """Seconds for which the old key is still valid."""


class OwnerRequest(Frozen):
    """What to set for an owner."""

    output_namespaces: Namespaces | None
    """Where results may go; null: where those of everybody may."""
