"""Bodies of requests and responses that need no web framework: the command line checks and shows them, too.

The others stand with their routes.
"""

from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import Annotated, Any, Generic, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    create_model,
)

from replaceme_core import shapes
from replaceme_core.families.layout import Layout, MapStructure, Refusal
from replaceme_core.families.table import limits
from replaceme_core.hardware import WorkerKind
from replaceme_core.ledger.keys import ApiKey, CreatedKey, KeyLimits, NewKey, Scope
from replaceme_core.ledger.reading import StageRecord, Timeline
from replaceme_core.ledger.records import Job, JobEvent
from replaceme_core.ledger.states import DEFAULT_EVENTS, EventType, JobStatus, Payload
from replaceme_core.ledger.webhooks import TYPE_PREFIX
from replaceme_core.request.admission import check_namespaces
from replaceme_core.request.fields import LONGEST_SECONDS, Frozen, Name, as_tuple, length, one_of
from replaceme_core.request.fields import Labels as AnyLabels
from replaceme_core.request.method import Method
from replaceme_core.request.removal import methods_of, structures_of
from replaceme_core.request.spec import CompressionRequest, CompressionSpec
from replaceme_core.runner.messages import Stage
from replaceme_core.shapes import QueuePosition, Shape
from replaceme_core.webhooks import (
    LONGEST_URL,
)
from replaceme_core.wording import json_safe

T = TypeVar("T")


class ResponseBody(BaseModel):
    """A JSON body that the service sends; made of any object that has the attributes."""

    model_config = ConfigDict(frozen=True, from_attributes=True)


@cache
def schema_of(body: Any) -> Mapping[str, object]:
    """The JSON schema of the body of a request, given as the annotation in its route."""
    return TypeAdapter(body).json_schema()


def has_secrets(schema: Mapping[str, object]) -> bool:
    """Whether the body has a field that may be sent but is never shown."""
    properties = schema.get("properties")
    fields = properties.values() if isinstance(properties, Mapping) else ()
    return any(isinstance(field, Mapping) and field.get("writeOnly") is True for field in fields)


class ListBody(ResponseBody, Generic[T]):
    """One page of a list. `next_cursor` requests the next page; it is null on the last one."""

    items: list[T]
    next_cursor: str | None = None


class Parameters(BaseModel):
    """Query parameters. Unknown ones are refused for all routes (`refuse_unknown`)."""

    model_config = ConfigDict(frozen=True)


class ProblemEntry(ResponseBody):
    """One invalid field of a request."""

    field: str
    value: object
    message: str


class ProblemBody(ResponseBody):
    """An error (RFC 9457). `errors` is present with status 422."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    errors: list[ProblemEntry] | None = None


# Jobs


class StageBody(ResponseBody):
    """A stage of the present attempt; `fraction` is the part that is done. Without times: not begun, or resumed."""

    name: Stage
    started_at: datetime | None
    finished_at: datetime | None
    fraction: float

    @classmethod
    def of(cls, record: StageRecord) -> Self:
        return cls(
            name=record.stage, started_at=record.started_at, finished_at=record.finished_at, fraction=record.fraction
        )


class AttemptBody(Shape):
    """An attempt; `outcome` is the type of the event that ended it, null while it is running."""

    number: int
    worker: str
    started_at: datetime
    finished_at: datetime | None
    outcome: EventType | None


class LinksBody(ResponseBody):
    self: str
    cancel: str
    retry: str
    events: str
    metrics: str
    logs: str
    report: str


class JobBody(shapes.Job):
    __doc__ = shapes.Job.__doc__

    status: JobStatus
    route: WorkerKind | None = None
    stage: Stage | None = None
    spec: CompressionSpec
    links: LinksBody

    @classmethod
    def of(cls, job: Job, *, root: str, **more: object) -> Self:
        """`root` is the path under which the service is mounted, usually ""; `more` are fields of a subclass."""
        here = f"{root}/jobs/{job.id}"
        links = {name: here if name == "self" else f"{here}/{name}" for name in LinksBody.model_fields}
        shown = {name: getattr(job, name) for name in shapes.Job.model_fields}
        return cls.model_validate({**shown, **more, "links": links})


class WholeJobBody(JobBody):
    """A job with all that is known; `queue` is null unless the job is queued."""

    queue: QueuePosition | None
    stages: tuple[StageBody, ...]
    attempts: tuple[AttemptBody, ...]

    @classmethod
    def at(cls, position: QueuePosition | None, job: Job, timeline: Timeline, *, root: str) -> Self:
        return cls.of(
            job,
            root=root,
            queue=position,
            stages=tuple(StageBody.of(record) for record in timeline.stages),
            attempts=tuple(AttemptBody.model_validate(record) for record in timeline.attempts),
        )


_OPTIONAL: Mapping[str, Any] = {
    name: (field.annotation, Field(default=None)) for name, field in JobBody.model_fields.items()
}
JobPartBody = create_model(
    "JobPart",
    __base__=ResponseBody,
    __doc__="A job in a list: all of its fields, or those that were asked for.",
    **_OPTIONAL,
)


# Events


class EventBody(shapes.JobEvent):
    """One entry of a job's history. `seq` counts from 1."""

    type: EventType

    @classmethod
    def of(cls, event: JobEvent) -> Self:
        return cls(seq=event.seq, type=event.type, at=event.at, attempt=event.attempt, data=json_safe(event.data))


class JobEventBody(EventBody):
    """An event among those of all your jobs. `position` rises from event to event; it may have gaps."""

    position: int
    job_id: str

    @classmethod
    def placed(cls, position: int, event: JobEvent) -> Self:
        return cls(position=position, job_id=event.job_id, **dict(EventBody.of(event)))


# The request for a job, and for a webhook with it


def _without_prefix(value: object) -> object:
    """An event may be named as in the history of a job, or as in a message: `job.succeeded`."""
    return value.removeprefix(TYPE_PREFIX) if isinstance(value, str) else value


def _distinct(events: tuple[EventType, ...]) -> tuple[EventType, ...]:
    return tuple(dict.fromkeys(events))


Url = Annotated[
    str,
    Field(
        min_length=1,
        max_length=LONGEST_URL,
        description="https://HOST[:PORT]/PATH, where HOST has public addresses only",
        examples=["https://hooks.example.com/replaceme"],
        json_schema_extra={"pattern": "^https?://."},
    ),
]
_Event = Annotated[EventType, one_of(EventType), BeforeValidator(_without_prefix)]
Events = Annotated[
    tuple[_Event, ...],
    BeforeValidator(as_tuple),
    AfterValidator(_distinct),
    length(1, 32, description="types of events, as in the history of a job"),
]
PayloadField = Annotated[
    Payload,
    one_of(Payload),
    Field(description="thin: what identifies the event; full: also the job as it was right after it"),
]
Labels = Annotated[AnyLabels, Field(description="only jobs that carry all of these labels")]
WebhookId = Annotated[str, Field(min_length=1, max_length=64)]


class JobWebhookRequest(Frozen):
    """A webhook for one job. Without `signed_by` it gets a secret of its own, which only this response shows."""

    url: Url
    events: Events = DEFAULT_EVENTS
    payload: PayloadField = Payload.THIN
    signed_by: WebhookId | None = Field(
        default=None, description="the id of a standing webhook of yours, whose secret signs these messages too"
    )


class JobRequest(CompressionRequest):
    """A job, and a webhook for it."""

    webhook: JobWebhookRequest | None = None
    validate_only: bool = Field(default=False, description="Answer with the plan, and queue nothing.")


# API keys and their owners

MOST_OVERLAP_SECONDS = 2_592_000  # 30 days
_LARGEST = 2**31 - 1
_LARGEST_SIZE = 2**53 - 1  # the largest whole number that every JSON reader keeps
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


class KeyLimitsBody(Frozen):
    """Limits of a key; null: the default of the service. 0: no limit."""

    requests_per_minute: int | None = Field(default=None, ge=0, le=_LARGEST)
    jobs: int | None = Field(default=None, ge=0, le=_LARGEST, description="queued and running")
    running_jobs: int | None = Field(
        default=None, ge=0, le=_LARGEST, description="running at the same time; null: no limit"
    )
    model_bytes: int | None = Field(default=None, ge=0, le=_LARGEST_SIZE, description="weights of a model")
    tokens: int | None = Field(default=None, ge=0, le=_LARGEST_SIZE, description="calibration tokens of a job")

    @classmethod
    def of(cls, limits: KeyLimits) -> Self:
        return cls(
            requests_per_minute=limits.requests_per_minute,
            jobs=limits.jobs,
            running_jobs=limits.running_jobs,
            model_bytes=limits.model_bytes,
            tokens=limits.tokens,
        )


class KeyRequest(Frozen):
    """A key to create. `owner` is the one whose jobs it sees, by default that of the key which creates it."""

    name: Annotated[Name, Field(max_length=100)]
    owner: OwnerName | None = None
    scopes: Scopes = (Scope.JOBS_READ, Scope.JOBS_WRITE)
    expires_in_seconds: int | None = Field(default=None, ge=1, le=10 * LONGEST_SECONDS, description="null: never")
    limits: KeyLimitsBody = KeyLimitsBody()

    def to_new(self, *, owner: str) -> NewKey:
        limits = KeyLimits(**dict(self.limits))
        return NewKey(
            owner=self.owner or owner,
            name=self.name,
            scopes=frozenset(self.scopes),
            limits=limits,
            expires_in_seconds=self.expires_in_seconds,
        )


class KeyRotationRequest(Frozen):
    """`overlap_seconds`: how long the old key is still valid."""

    overlap_seconds: int = Field(default=86_400, ge=0, le=MOST_OVERLAP_SECONDS)


class OwnerRequest(Frozen):
    """`output_namespaces`: where results of the owner may go; null: where those of everybody may."""

    output_namespaces: Namespaces | None


class KeyBody(ResponseBody):
    """An API key without its text. `start` is the beginning of the text, to recognise it by."""

    id: str
    owner: str
    name: str
    start: str
    scopes: tuple[Scope, ...]
    limits: KeyLimitsBody
    is_live: bool
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None

    @classmethod
    def of(cls, found: ApiKey, **more: object) -> Self:
        return cls(
            **more,
            id=found.id,
            owner=found.owner,
            name=found.name,
            start=found.start,
            scopes=tuple(sorted(found.scopes)),
            limits=KeyLimitsBody.of(found.limits),
            is_live=found.is_live,
            created_at=found.created_at,
            expires_at=found.expires_at,
            last_used_at=found.last_used_at,
            revoked_at=found.revoked_at,
        )


class CreatedKeyBody(KeyBody):
    """A new key. `key` is its text: it is shown here once, and cannot be shown again."""

    key: str

    @classmethod
    def created(cls, created: CreatedKey) -> Self:
        return cls.of(created.key, key=created.text)


class OwnerBody(ResponseBody):
    owner: str
    output_namespaces: tuple[str, ...] | None


# Families of models


class FamilyBody(ResponseBody):
    """A model type. `reason` explains why it is refused or, if it is supported, which of its models are not."""

    model_type: str
    supported: bool
    methods: tuple[Method, ...]
    structures: tuple[MapStructure, ...] = ()
    reason: str | None

    @classmethod
    def of(cls, row: Layout | Refusal) -> Self:
        if isinstance(row, Refusal):
            return cls(model_type=row.model_type, supported=False, methods=(), reason=row.reason)
        return cls(
            model_type=row.model_type,
            supported=True,
            methods=methods_of(row),
            structures=structures_of(row),
            reason=limits(row),
        )
