"""Jobs. The body of `POST /jobs` is `JobRequest` in `plans.py`."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Self

from pydantic import Field, create_model

from api.schemas.body import Body
from replaceme_core.hardware import WorkerKind
from replaceme_core.ledger.reading import AttemptRecord, StageRecord, Timeline
from replaceme_core.ledger.records import Change, Job, JobError, JobResult, JobSummary, QueuePosition
from replaceme_core.ledger.states import EventType, JobStatus
from replaceme_core.request.gate import GateResult
from replaceme_core.request.spec import CompressionSpec
from replaceme_core.runner.messages import Stage


class ProgressBody(Body):
    """`overall` is the completed fraction of the job, `stage` that of its current stage, both from 0 to 1.

    `eta_error_seconds` is how far `eta_seconds` may be off, judged by how it has moved so far and by what is overdue.
    """

    overall: float
    stage: float
    eta_seconds: float | None
    eta_error_seconds: float | None


class StageBody(Body):
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


class AttemptBody(Body):
    """An attempt; `outcome` is the type of the event that ended it, null while it is running."""

    number: int
    worker: str
    started_at: datetime
    finished_at: datetime | None
    outcome: EventType | None

    @classmethod
    def of(cls, record: AttemptRecord) -> Self:
        return cls(
            number=record.number,
            worker=record.worker,
            started_at=record.started_at,
            finished_at=record.finished_at,
            outcome=record.outcome,
        )


class ChangeBody(Body):
    """Of the original model and of the result; null: not measured."""

    before: float | None
    after: float | None

    @classmethod
    def of(cls, change: Change) -> Self:
        return cls(before=change.before, after=change.after)


class SummaryBody(Body):
    """What a result is. `perplexity` is on text that calibration did not see."""

    blocks: ChangeBody
    parameters: ChangeBody
    perplexity: ChangeBody

    @classmethod
    def of(cls, summary: JobSummary) -> Self:
        return cls(
            blocks=ChangeBody.of(summary.blocks),
            parameters=ChangeBody.of(summary.parameters),
            perplexity=ChangeBody.of(summary.perplexity),
        )


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


class CriterionBody(Body):
    """A criterion of the gate: what was measured, the limits (null: none), and whether the value is within them."""

    name: str
    value: float
    min: float | None
    max: float | None
    passed: bool


class TrialBody(Body):
    """A trial of a search for the deepest cut: the number of removed `blocks`, and what its result is worth.

    `measured` are values by the names of criteria, also of those that the gate has not. `problem` says why there are
    none.
    """

    blocks: int
    removed_blocks: tuple[int, ...]
    passed: bool
    criteria: tuple[CriterionBody, ...]
    measured: dict[str, float]
    seconds: float
    problem: str | None


class GateBody(Body):
    """What became of the gate; `passed` if all criteria are. `trials`: of a search for the deepest cut, in order."""

    passed: bool
    criteria: tuple[CriterionBody, ...]
    trials: tuple[TrialBody, ...]

    @classmethod
    def of(cls, gate: GateResult) -> Self:
        return cls.model_validate(gate.model_dump())


class LinksBody(Body):
    self: str
    cancel: str
    retry: str
    events: str
    metrics: str
    logs: str
    report: str


class JobBody(Body):
    """A job. `route` is the kind of worker that may run it; null means any.

    `summary` is that of a job that succeeded, `gate` that of a result that was judged. `retry_of` is the job that this
    one repeats, `retried_as` the latest that repeats this one.
    """

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
    summary: SummaryBody | None
    gate: GateBody | None
    retry_of: str | None
    retried_as: str | None
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
            progress=ProgressBody(
                overall=job.overall,
                stage=job.fraction,
                eta_seconds=job.eta_seconds,
                eta_error_seconds=job.eta_error_seconds,
            ),
            attempt=job.attempt,
            labels=dict(job.labels),
            spec=job.spec,
            created_at=job.created_at,
            started_at=job.started_at,
            finished_at=job.finished_at,
            error=ErrorBody.of(job.error) if job.error else None,
            result=ResultBody.of(job.result) if job.result else None,
            summary=SummaryBody.of(job.result.summary) if job.result and job.result.summary else None,
            gate=None if job.gate is None else GateBody.of(job.gate),
            retry_of=job.retry_of,
            retried_as=job.retried_as,
            links=LinksBody(
                self=here,
                cancel=f"{here}/cancel",
                retry=f"{here}/retry",
                events=f"{here}/events",
                metrics=f"{here}/metrics",
                logs=f"{here}/logs",
                report=f"{here}/report",
            ),
        )


class QueueBody(Body):
    """The position of a queued job; 1 starts next, null means that the queue is too long to count.

    `estimated_start_at` is an estimate from the jobs before it; null means unknown.
    """

    position: int | None
    estimated_start_at: datetime | None


class WholeJobBody(JobBody):
    """A job with all that is known; `queue` is null unless the job is queued."""

    queue: QueueBody | None
    stages: tuple[StageBody, ...]
    attempts: tuple[AttemptBody, ...]

    @classmethod
    def at(cls, position: QueuePosition | None, job: Job, timeline: Timeline, *, root: str) -> Self:
        queue = None
        if position is not None:
            queue = QueueBody(position=position.position, estimated_start_at=position.estimated_start_at)
        return cls.of(
            job,
            root=root,
            queue=queue,
            stages=tuple(StageBody.of(record) for record in timeline.stages),
            attempts=tuple(AttemptBody.of(record) for record in timeline.attempts),
        )


_OPTIONAL: Mapping[str, Any] = {
    name: (field.annotation, Field(default=None)) for name, field in JobBody.model_fields.items()
}
JobPartBody = create_model(
    "JobPart", __base__=Body, __doc__="A job in a list: all of its fields, or those that were asked for.", **_OPTIONAL
)
