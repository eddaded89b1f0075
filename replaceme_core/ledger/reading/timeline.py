"""The attempts at a job and the stages of the present one, from its events."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import groupby

from sqlalchemy import select
from sqlalchemy.orm import Session

from replaceme_core.ledger.records import Job, JobEvent
from replaceme_core.ledger.states import EventType, JobStatus
from replaceme_core.ledger.tables import JobEventRow
from replaceme_core.runner.eta import weights_of
from replaceme_core.runner.messages import Stage

_ENDS = (
    EventType.RELEASED,
    EventType.LEASE_LAPSED,
    EventType.SUCCEEDED,
    EventType.FAILED,
    EventType.CANCELLED,
)


@dataclass(frozen=True, kw_only=True)
class AttemptRecord:
    """One attempt; `outcome` is the type of the event that ended it, `None` while it is running."""

    number: int
    worker: str
    started_at: datetime
    finished_at: datetime | None = None
    outcome: EventType | None = None


@dataclass(frozen=True, kw_only=True)
class StageRecord:
    """A stage of the present attempt; `fraction` is the part that is done, 0 to 1.

    The times are `None` for a stage that has not begun, and for one whose result was resumed from an earlier attempt.
    """

    stage: Stage
    started_at: datetime | None = None
    finished_at: datetime | None = None
    fraction: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """What has happened to a job, oldest first."""

    attempts: tuple[AttemptRecord, ...] = ()
    stages: tuple[StageRecord, ...] = ()


def read_timelines(session: Session, jobs: Collection[Job]) -> dict[str, Timeline]:
    """The timelines by job id; one statement for all."""
    if not jobs:
        return {}
    rows = session.scalars(
        select(JobEventRow)
        .where(JobEventRow.job_id.in_([job.id for job in jobs]))
        .order_by(JobEventRow.job_id, JobEventRow.seq)
    )
    events = {job_id: [to_event(row) for row in of_job] for job_id, of_job in groupby(rows, lambda row: row.job_id)}
    return {job.id: timeline_of(job, events.get(job.id, [])) for job in jobs}


def to_event(row: JobEventRow) -> JobEvent:
    """The record of a row."""
    return JobEvent(job_id=row.job_id, seq=row.seq, type=row.type, at=row.at, attempt=row.attempt, data=row.data)


def timeline_of(job: Job, events: Sequence[JobEvent]) -> Timeline:
    """The timeline of a job with these events, which are in order."""
    attempts: list[AttemptRecord] = []
    entered: dict[Stage, StageRecord] = {}
    ended_at: datetime | None = None
    for event in events:
        if event.type is EventType.CLAIMED:
            worker = str(event.data.get("worker", ""))
            attempts.append(AttemptRecord(number=event.attempt, worker=worker, started_at=event.at))
            entered, ended_at = {}, None
        elif event.type is EventType.STAGE:
            _end_last(entered, event.at, fraction=1.0)
            stage = Stage(str(event.data["stage"]))
            entered.pop(stage, None)  # entered again: it counts from here
            entered[stage] = StageRecord(stage=stage, started_at=event.at)
        elif event.type in _ENDS and attempts and attempts[-1].outcome is None:
            attempts[-1] = replace(attempts[-1], finished_at=event.at, outcome=event.type)
            ended_at = event.at
    if job.status is JobStatus.QUEUED:
        entered = {}  # the next attempt begins anew
    elif ended_at is not None:
        _end_last(entered, ended_at, fraction=1.0 if job.status is JobStatus.SUCCEEDED else job.fraction)
    elif job.stage in entered:
        entered[job.stage] = replace(entered[job.stage], fraction=job.fraction)
    return Timeline(attempts=tuple(attempts), stages=_all_stages(job, entered))


def _end_last(entered: dict[Stage, StageRecord], at: datetime, *, fraction: float) -> None:
    if entered:
        stage = next(reversed(entered))
        entered[stage] = replace(entered[stage], finished_at=at, fraction=fraction)


def _all_stages(job: Job, entered: Mapping[Stage, StageRecord]) -> tuple[StageRecord, ...]:
    """The stages of the job in order: those that were entered, those that were passed over, those to come."""
    expected = weights_of(job.spec)
    order = [stage for stage in Stage if stage in expected or stage in entered]
    last = max((order.index(stage) for stage in entered), default=-1)
    passed = job.status is JobStatus.SUCCEEDED
    return tuple(
        entered.get(stage, StageRecord(stage=stage, fraction=1.0 if passed or index < last else 0.0))
        for index, stage in enumerate(order)
    )
