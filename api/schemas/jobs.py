"""Jobs. The body of `POST /jobs` is `JobRequest` in `plans.py`."""

import re
from datetime import datetime
from typing import Annotated, Self

from pydantic import Field, TypeAdapter, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from api.schemas.body import Body, Query
from replaceme_core.admission.worker_kind import WorkerKind
from replaceme_core.fields import LabelText
from replaceme_core.jobs.records import Job, JobError, JobResult, QueuePosition
from replaceme_core.jobs.states import JobStatus
from replaceme_core.runner.messages import Stage
from replaceme_core.spec import CompressionSpec

_LABEL_TEXT: TypeAdapter[str] = TypeAdapter(LabelText)


class ProgressBody(Body):
    """`overall` is the completed fraction of the job, `stage` that of its current stage, both from 0 to 1."""

    overall: float
    stage: float
    eta_seconds: float | None


class ErrorBody(Body):
    code: str
    message: str

    @classmethod
    def of(cls, error: JobError) -> Self:
        return cls(code=error.code, message=error.message)


class WarningBody(Body):
    """What to know before using a result; `code` is for programs."""

    code: str
    message: str


class ResultBody(Body):
    repo_id: str
    revision: str
    removed_blocks: tuple[int, ...]
    kept_blocks: tuple[int, ...]
    warnings: tuple[WarningBody, ...]

    @classmethod
    def of(cls, result: JobResult) -> Self:
        return cls(
            repo_id=result.repo_id,
            revision=result.revision,
            removed_blocks=result.removed_blocks,
            kept_blocks=result.kept_blocks,
            warnings=tuple(WarningBody(code=one.code, message=one.message) for one in result.warnings),
        )


class LinksBody(Body):
    self: str
    cancel: str
    events: str
    metrics: str
    report: str


class JobBody(Body):
    """A job. `route` is the kind of worker that may run it; null means any."""

    id: str
    status: JobStatus
    route: WorkerKind | None  # the name of `worker_kind` in this API
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
        """`root` is the path under which the service is mounted, usually ""; `more` are fields of a subclass."""
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


class QueueBody(Body):
    """The position of a queued job; 1 starts next, null means that the queue is too long to count.

    `estimated_start_at` is an estimate from the jobs before it; null means unknown.
    """

    position: int | None
    estimated_start_at: datetime | None


class QueuedJobBody(JobBody):
    """A job with its queue position; `queue` is null unless the job is queued."""

    queue: QueueBody | None

    @classmethod
    def at(cls, position: QueuePosition | None, job: Job, *, root: str) -> Self:
        queue = None
        if position is not None:
            queue = QueueBody(position=position.position, estimated_start_at=position.estimated_start_at)
        return cls.of(job, root=root, queue=queue)


class JobsQuery(Query):
    limit: Annotated[int, Field(ge=1, le=200)] = 50
    cursor: Annotated[str, Field(min_length=1, max_length=500)] | None = None
    status: JobStatus | None = None
    label: list[str] = Field(default=[], max_length=32, description="KEY=VALUE; a job must have all that are given")

    @model_validator(mode="after")
    def _check_labels(self) -> Self:
        self.labels()
        return self

    def labels(self) -> dict[str, str]:
        """The labels to filter by, name to value."""
        found: dict[str, str] = {}
        for text in self.label:
            name, *rest = re.split("[=:]", text, maxsplit=1)
            try:
                value = _LABEL_TEXT.validate_python("".join(rest))
                name = _LABEL_TEXT.validate_python(name)
            except ValidationError:
                raise _bad_label("expected KEY=VALUE, each of 1 to 63 letters, digits, '.', '_', '/', '-'") from None
            if found.setdefault(name, value) != value:
                raise _bad_label("two values for one label match no job, since a job has one value for each label")
        return found


def _bad_label(message: str) -> PydanticCustomError:
    return PydanticCustomError("label", "{message}", {"field": "label", "message": message})
