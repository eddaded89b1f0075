"""Bodies and query parameters as HTTP shows them; the body of `POST /jobs` is `CompressionRequest` of the core."""

import re
from datetime import datetime
from typing import Annotated, Generic, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from api.http.validation import carried
from replaceme_core.admission.family_options import methods_of, structures_of
from replaceme_core.admission.worker_kind import WorkerKind
from replaceme_core.families.layout import Layout, Refusal
from replaceme_core.families.table import limits
from replaceme_core.fields import LabelText
from replaceme_core.jobs.records import Job, JobError, JobEvent, JobResult, Metric, QueuePosition
from replaceme_core.jobs.states import EventType, JobStatus
from replaceme_core.runner.messages import Stage
from replaceme_core.spec import CompressionSpec, Method

T = TypeVar("T")
_LABEL_TEXT: TypeAdapter[str] = TypeAdapter(LabelText)
_LARGEST_SEQ = 2**31 - 1


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True)


class ProgressBody(_Body):
    """Fractions from 0 to 1: of the whole job and of its present stage."""

    overall: float
    stage: float
    eta_seconds: float | None


class ErrorBody(_Body):
    code: str
    message: str

    @classmethod
    def of(cls, error: JobError) -> Self:
        return cls(code=error.code, message=error.message)


class ResultBody(_Body):
    repo_id: str
    revision: str
    removed_blocks: tuple[int, ...]
    kept_blocks: tuple[int, ...]

    @classmethod
    def of(cls, result: JobResult) -> Self:
        return cls(
            repo_id=result.repo_id,
            revision=result.revision,
            removed_blocks=result.removed_blocks,
            kept_blocks=result.kept_blocks,
        )


class LinksBody(_Body):
    self: str
    cancel: str
    events: str
    metrics: str
    report: str


class JobBody(_Body):
    """`route`: the workers that may take the job, null: all."""

    id: str
    status: JobStatus
    route: WorkerKind | None
    stage: Stage | None
    progress: ProgressBody
    attempt: int
    labels: dict[str, str]
    spec: CompressionSpec
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    error: ErrorBody | None
    result: ResultBody | None
    links: LinksBody

    @classmethod
    def of(cls, job: Job, *, root: str, **more: object) -> Self:
        """`root` is the path under which the service is mounted, "" as a rule; `more` are fields of a subclass."""
        here = f"{root}/jobs/{job.id}"
        return cls(
            **more,
            id=job.id,
            status=job.status,
            route=job.worker_kind,
            stage=job.stage,
            progress=ProgressBody(overall=job.overall, stage=job.fraction, eta_seconds=job.eta_seconds),
            attempt=job.attempt,
            labels=dict(job.labels),
            spec=job.spec,
            created_at=job.created_at,
            started_at=job.started_at,
            finished_at=job.finished_at,
            error=ErrorBody.of(job.error) if job.error else None,
            result=ResultBody.of(job.result) if job.result else None,
            links=LinksBody(
                self=here,
                cancel=f"{here}/cancel",
                events=f"{here}/events",
                metrics=f"{here}/metrics",
                report=f"{here}/report",
            ),
        )


class QueueBody(_Body):
    """Where a queued job stands: 1 starts next; null in a queue too long to count. The start is a guess."""

    position: int | None
    estimated_start_at: datetime | None


class QueuedJobBody(JobBody):
    """A job with its place in the queue, null where it does not wait."""

    queue: QueueBody | None

    @classmethod
    def at(cls, place: QueuePosition | None, job: Job, *, root: str) -> Self:
        queue = None
        if place is not None:
            queue = QueueBody(position=place.position, estimated_start_at=place.estimated_start_at)
        return cls.of(job, root=root, queue=queue)


class EventBody(_Body):
    seq: int
    type: EventType
    at: datetime
    attempt: int
    data: object

    @classmethod
    def of(cls, event: JobEvent) -> Self:
        return cls(seq=event.seq, type=event.type, at=event.at, attempt=event.attempt, data=carried(event.data))


class MetricBody(_Body):
    name: str
    stage: Stage
    block: int | None
    candidate: str | None
    value: float
    unit: str
    at: datetime

    @classmethod
    def of(cls, metric: Metric) -> Self:
        return cls(
            name=metric.name,
            stage=metric.stage,
            block=metric.block,
            candidate=metric.candidate,
            value=metric.value,
            unit=metric.unit,
            at=metric.at,
        )


class FamilyBody(_Body):
    """`reason` says why a type is refused or, of a supported one, which of its models are."""

    model_type: str
    supported: bool
    methods: tuple[Method, ...]
    structures: tuple[str, ...] = ()
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


class ListBody(_Body, Generic[T]):
    """A part of a list; `next_cursor` leads to the next part and is null on the last."""

    items: list[T]
    next_cursor: str | None = None


class HealthBody(_Body):
    status: Literal["ok"] = "ok"


class ReadyBody(_Body):
    status: Literal["ok"] = "ok"
    database: Literal["ok"] = "ok"
    broker: Literal["ok"] = "ok"


class ProblemEntry(_Body):
    field: str
    value: object
    message: str


class ProblemBody(_Body):
    """RFC 9457. `errors` is there with status 422."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    errors: list[ProblemEntry] | None = None


class _Query(BaseModel):
    """Query parameters; an unknown one is an error, for a filter with a typing error would pass everything."""

    model_config = ConfigDict(frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _known(cls, given: object) -> object:
        for name in given if isinstance(given, dict) else ():
            if name not in cls.model_fields:
                known = ", ".join(cls.model_fields)
                raise PydanticCustomError(
                    "unknown_parameter",
                    "unknown parameter; the known ones are {known}",
                    {"field": name, "known": known},
                )
        return given


class JobsQuery(_Query):
    limit: Annotated[int, Field(ge=1, le=200)] = 50
    cursor: Annotated[str, Field(min_length=1, max_length=500)] | None = None
    status: JobStatus | None = None
    label: list[str] = Field(default=[], max_length=32, description="KEY=VALUE; a job must carry all that are given")

    @model_validator(mode="after")
    def _labels_are_labels(self) -> Self:
        self.labels()
        return self

    def labels(self) -> dict[str, str]:
        """The labels to filter by."""
        found: dict[str, str] = {}
        for text in self.label:
            name, *rest = re.split("[=:]", text, maxsplit=1)
            try:
                value = _LABEL_TEXT.validate_python("".join(rest))
                name = _LABEL_TEXT.validate_python(name)
            except ValidationError:
                raise _bad_label("expected KEY=VALUE, each of 1 to 63 letters, digits, '.', '_', '/', '-'") from None
            if found.setdefault(name, value) != value:
                raise _bad_label("a job has one value for a label, so two for the same one match nothing")
        return found


def _bad_label(message: str) -> PydanticCustomError:
    return PydanticCustomError("label", "{message}", {"field": "label", "message": message})


class EventsQuery(_Query):
    after: Annotated[int, Field(ge=0, le=_LARGEST_SEQ)] = 0
    limit: Annotated[int, Field(ge=1, le=1000)] = 100
