"""Reads of jobs: one, several, a page of a list; their events, metrics and reports; attempts and stages as a timeline.

Writes nothing.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from itertools import groupby, pairwise

from pydantic import ValidationError
from sqlalchemy import ColumnElement, Select, and_, bindparam, func, or_, select, tuple_
from sqlalchemy.orm import Session

from replaceme_core.errors import InvalidInput, NotFound
from replaceme_core.hardware import WorkerKind
from replaceme_core.ledger.records import Job, JobEvent, Page, from_cursor, page_of, to_cursor, to_job, to_spec
from replaceme_core.ledger.states import ATTEMPT_ENDS, EventType, JobStatus
from replaceme_core.ledger.tables import JobEventRow, JobLabelRow, JobLogRow, JobRow, MetricRow, is_uuid
from replaceme_core.ledger.transitions import find_job
from replaceme_core.plan.duration import MODELLED, inputs_of
from replaceme_core.plan.eta import weights_of
from replaceme_core.runner.messages import PastJob, Stage
from replaceme_core.shapes import LogLine, Metric, Shape

_SHOWN = tuple(
    column.key
    for column in JobRow.__mapper__.column_attrs
    if column.key not in ("report", "lease_token", "lease_expires_at", "enqueued_at")
)
_VERSION_BYTES = 12
OwnedId = tuple[str, str]
"""The id of a job, and whose it is to be."""
_BY_ID = select(JobRow).where(
    JobRow.id.in_(bindparam("ids", expanding=True)),
    # here and not afterwards: the answer for a job of another owner must take no longer than for one that never was
    tuple_(JobRow.id, JobRow.owner).in_(bindparam("wanted", expanding=True)),
)
"""Built once, since every poll reads by it."""


class JobSnapshot:
    """A job at the time of the read.

    `version` changes with everything that a client can see of it, whichever release wrote it: it is a hash of the
    columns, not a counter that each writer would have to increment.
    """

    def __init__(self, row: JobRow) -> None:
        self._row = row
        self.id: str = row.id
        self.status: JobStatus = row.status
        self.priority: int = row.priority
        self.eta_seconds: float | None = row.eta_seconds
        shown = repr([getattr(row, name) for name in _SHOWN])
        self.version = hashlib.blake2b(shown.encode(errors="replace"), digest_size=_VERSION_BYTES).hexdigest()

    def job(self) -> Job:
        """The record; validates the stored specification."""
        return to_job(self._row)


def get_snapshots(session: Session, wanted: Collection[OwnedId]) -> dict[OwnedId, JobSnapshot]:
    """One statement for all, one row of an index for each; what is no job of that owner is left out."""
    known = [one for one in wanted if is_uuid(one[0])]
    asked = {"ids": [job_id for job_id, _ in known], "wanted": known}
    rows = session.scalars(_BY_ID, asked)
    return {(row.id, row.owner): JobSnapshot(row) for row in rows}


CURSOR_PATTERN = r"^[A-Za-z0-9_-]{1,200}$"
_CURSOR = re.compile(r"(-?[a-z_]+) (\d{1,18}|-) ([1-9]\d{0,17})")
_MICROSECONDS = 1_000_000


_MOST_LOOKED_AT = 500
_FIRST_ID, _LAST_ID = ("xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx".replace("x", digit) for digit in "0f")


class Sort(StrEnum):
    """The order of a list. By `finished_at`, only jobs that have finished are listed."""

    NEWEST = "-created_at"
    OLDEST = "created_at"
    LAST_FINISHED = "-finished_at"
    FIRST_FINISHED = "finished_at"

    @property
    def descends(self) -> bool:
        return self.value.startswith("-")

    @property
    def by_end(self) -> bool:
        return self in (Sort.LAST_FINISHED, Sort.FIRST_FINISHED)


@dataclass(frozen=True, kw_only=True)
class JobFilters:
    """What the jobs of a list have in common; what is empty or `None` does not matter. `ids` may name no job."""

    statuses: Sequence[JobStatus] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    model: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    ids: Sequence[str] = ()
    id_prefix: str | None = None

    def conditions(self, *, owner: str) -> list[ColumnElement[bool]]:
        """The WHERE clause."""
        found: list[ColumnElement[bool]] = [JobRow.owner == owner]
        if self.statuses:
            found.append(JobRow.status.in_(self.statuses))
        if self.model is not None:
            # rows of the release before have it in the specification only
            old = and_(JobRow.model.is_(None), JobRow.spec["model"]["repo_id"].as_string() == self.model)
            found.append(or_(JobRow.model == self.model, old))
        if self.created_after is not None:
            found.append(JobRow.created_at > self.created_after)
        if self.created_before is not None:
            found.append(JobRow.created_at < self.created_before)
        if self.ids:
            found.append(JobRow.id.in_(self.ids))
        if self.id_prefix is not None:
            found.append(JobRow.id.startswith(self.id_prefix, autoescape=True))
            # a range of the index in the order of any language, since all ids have hyphens at the same places
            first, last = (self.id_prefix + end[len(self.id_prefix) :] for end in (_FIRST_ID, _LAST_ID))
            found.append(JobRow.id.between(first, last))
        for name, value in self.labels.items():
            labelled = select(JobLabelRow.job_id).where(JobLabelRow.name == name, JobLabelRow.value == value)
            found.append(JobRow.id.in_(labelled))
        return found


ALL = JobFilters()


def page(
    session: Session,
    *,
    owner: str,
    limit: int,
    cursor: str | None = None,
    filters: JobFilters = ALL,
    sort: Sort = Sort.NEWEST,
) -> Page[JobSnapshot]:
    """One page. Raises `InvalidInput` (field `cursor`).

    A cursor is a position in the order, so new jobs neither shift a page nor repeat a job.
    """
    query = _ordered(select(JobRow).where(*filters.conditions(owner=owner)), sort).limit(limit + 1)
    if cursor is not None:
        query = query.where(_beyond(cursor, sort))
    rows = session.scalars(query).all()
    return page_of(rows, limit, JobSnapshot, cursor=lambda row: _to_cursor(row, sort))


def models(session: Session, *, owner: str, limit: int) -> list[str]:
    """The repositories that the last jobs of an owner have compressed, each once, the last one first."""
    last = select(JobRow.model).where(JobRow.owner == owner).order_by(JobRow.number.desc()).limit(_MOST_LOOKED_AT)
    return list(dict.fromkeys(found for found in session.scalars(last) if found is not None))[:limit]


def totals(session: Session, *, owner: str, filters: JobFilters = ALL) -> dict[JobStatus, int]:
    """How many jobs of each status match, whatever status is filtered by."""
    matches = replace(filters, statuses=()).conditions(owner=owner)
    found = session.execute(select(JobRow.status, func.count()).where(*matches).group_by(JobRow.status))
    return {JobStatus(status): count for status, count in found}


def _ordered(query: Select[JobRow], sort: Sort) -> Select[JobRow]:
    columns = (JobRow.finished_at, JobRow.number) if sort.by_end else (JobRow.number,)
    if sort.by_end:
        query = query.where(JobRow.finished_at.is_not(None))
    return query.order_by(*(column.desc() if sort.descends else column.asc() for column in columns))


def _beyond(cursor: str, sort: Sort) -> ColumnElement[bool]:
    """What comes after the position of a cursor."""
    match = _CURSOR.fullmatch(from_cursor(cursor))
    if match is None or match[1] != sort or (match[2] == "-") is sort.by_end:
        raise InvalidInput(
            "the cursor must be the next_cursor of an earlier page of this list, unchanged and with the same sort",
            field="cursor",
            value=cursor,
        )
    number = int(match[3])
    after = JobRow.number < number if sort.descends else JobRow.number > number
    if not sort.by_end:
        return after
    seconds, microseconds = divmod(int(match[2]), _MICROSECONDS)
    try:
        at = datetime.fromtimestamp(seconds, UTC).replace(microsecond=microseconds)
    except (ValueError, OverflowError, OSError):
        raise InvalidInput("the cursor names a time that does not exist", field="cursor", value=cursor) from None
    later = JobRow.finished_at < at if sort.descends else JobRow.finished_at > at
    return or_(later, and_(JobRow.finished_at == at, after))


def _to_cursor(row: JobRow, sort: Sort) -> str:
    at = "-"
    if sort.by_end:
        assert row.finished_at is not None
        at = str(int(row.finished_at.timestamp()) * _MICROSECONDS + row.finished_at.microsecond)
    return to_cursor(f"{sort} {at} {row.number}")


class Attempt(Shape):
    """One attempt of a job."""

    number: int
    """Counts from 1."""
    worker: str
    """Name of the worker that ran it."""
    started_at: datetime
    """When it was claimed."""
    finished_at: datetime | None = None
    """When it ended; null: it is running."""
    outcome: EventType | None = None
    """Type of the event that ended it; null: it is running."""


class StageTimes(Shape):
    """A stage of the present attempt."""

    name: Stage
    """Name of the stage."""
    started_at: datetime | None = None
    """When it began; null: not begun, or resumed after it."""
    finished_at: datetime | None = None
    """When it ended; null: not yet, or resumed after it."""
    fraction: float = 0.0
    """Part that is done, from 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """What has happened to a job, oldest first."""

    attempts: tuple[Attempt, ...] = ()
    stages: tuple[StageTimes, ...] = ()


def timelines(session: Session, jobs: Collection[Job]) -> dict[str, Timeline]:
    """The timelines by job id; one statement for all."""
    if not jobs:
        return {}
    rows = session.scalars(
        select(JobEventRow)
        .where(JobEventRow.job_id.in_([job.id for job in jobs]))
        .order_by(JobEventRow.job_id, JobEventRow.seq)
    )
    events = {job_id: [JobEvent.of(row) for row in of_job] for job_id, of_job in groupby(rows, lambda row: row.job_id)}
    return {job.id: timeline_of(job, events.get(job.id, [])) for job in jobs}


def timeline_of(job: Job, events: Sequence[JobEvent]) -> Timeline:
    """The timeline of a job with these events, which are in order."""
    attempts: list[Attempt] = []
    marks: list[tuple[Stage | None, datetime | None]] = []  # of the present attempt: stages, and when they began
    ended_at: datetime | None = None
    for event in events:
        if event.type is EventType.CLAIMED:
            worker = str(event.data.get("worker", ""))
            attempts.append(Attempt(number=event.attempt, worker=worker, started_at=event.at))
            marks, ended_at = [], None
        elif event.type is EventType.STAGE:
            marks.append((Stage(str(event.data["stage"])), event.at))
        elif event.type in ATTEMPT_ENDS and attempts and attempts[-1].outcome is None:
            attempts[-1] = attempts[-1].model_copy(update={"finished_at": event.at, "outcome": event.type})
            ended_at = event.at
    if job.status is JobStatus.QUEUED:
        marks = []  # the next attempt begins anew
    is_done, entered = job.status is JobStatus.SUCCEEDED, dict[Stage, StageTimes]()
    for (stage, begin), (later, end) in pairwise([*marks, (None, ended_at)]):
        if stage is not None:  # one that was entered again counts from there
            present = (job.progress.stage if job.stage is stage else None) or 0.0
            fraction = 1.0 if is_done or later is not None else present
            entered[stage] = StageTimes(name=stage, started_at=begin, finished_at=end, fraction=fraction)
    # those that were entered, those that were passed over, those to come
    expected = weights_of(job.spec)
    order = [stage for stage in Stage if stage in expected or stage in entered]
    last = max((order.index(stage) for stage in entered), default=-1)
    stages = (
        entered.get(stage, StageTimes(name=stage, fraction=1.0 if is_done or index < last else 0.0))
        for index, stage in enumerate(order)
    )
    return Timeline(attempts=tuple(attempts), stages=tuple(stages))


_HIGHEST = 2**31 - 1


def get(session: Session, job_id: str, *, owner: str) -> Job:
    """Raises `JobNotFound`, also if the job belongs to another owner."""
    return to_job(find_job(session, job_id, owner=owner))


def events(session: Session, job_id: str, *, owner: str, after: int = 0, limit: int = 100) -> Page[JobEvent]:
    """Events with `seq` above `after`; `next_cursor` is the next `after`. Raises `JobNotFound`."""
    find_job(session, job_id, owner=owner)
    beyond = select(JobEventRow).where(JobEventRow.job_id == job_id, JobEventRow.seq > min(after, _HIGHEST))
    rows = session.scalars(beyond.order_by(JobEventRow.seq).limit(limit + 1)).all()
    return page_of(rows, limit, JobEvent.of, cursor=lambda row: str(row.seq))


def log(session: Session, job_id: str, *, owner: str, after: int = 0, limit: int = 100) -> Page[LogLine]:
    """Lines of the runners' log with a number above `after`, oldest first. Raises `JobNotFound`."""
    find_job(session, job_id, owner=owner)
    beyond = select(JobLogRow).where(JobLogRow.job_id == job_id, JobLogRow.number > min(after, _HIGHEST))
    rows = session.scalars(beyond.order_by(JobLogRow.number).limit(limit + 1)).all()
    return page_of(rows, limit, LogLine.of, cursor=lambda row: str(row.number))


def metrics(session: Session, job_id: str, *, owner: str) -> list[Metric]:
    """Values of the present attempt, in the order in which they were written. Raises `JobNotFound`."""
    job = find_job(session, job_id, owner=owner)
    rows = session.scalars(
        select(MetricRow).where(MetricRow.job_id == job_id, MetricRow.attempt == job.attempt).order_by(MetricRow.number)
    )
    return [Metric.of(row) for row in rows]


def report(session: Session, job_id: str, *, owner: str) -> dict[str, object]:
    """The content of `replaceme.json`. Raises `JobNotFound`, or `NotFound` while there is none."""
    row = find_job(session, job_id, owner=owner)
    found = session.scalars(select(JobRow.report).where(JobRow.number == row.number)).one_or_none()
    if found is None:  # or the job was deleted meanwhile
        raise NotFound(f"job {job_id!r} has no report: it is {row.status}")
    return found


def has_made(session: Session, job_id: str, repo_id: str, *, owner: str) -> bool:
    """Whether this job is one of the owner's and its result goes to `repo_id`."""
    found = get_snapshots(session, [(job_id, owner)]).values()
    return any(snapshot.job().spec.output.repo_id == repo_id for snapshot in found)


HISTORY_JOBS = 50


def past_jobs(session: Session, worker_kind: WorkerKind) -> tuple[PastJob, ...]:
    """The latest jobs that succeeded at their first attempt on a worker of this kind, the newest first.

    Later attempts resume from checkpoints, so that their stages are shorter. Jobs of all owners count; nothing of them
    reaches a caller but the estimate. A stage lasts until the next one begins, so that the stages of a job add up to
    the whole of it; `download` has what comes before it, and the start of the runner.
    """
    rows = session.scalars(
        select(JobRow)
        .where(JobRow.status == JobStatus.SUCCEEDED, JobRow.worker_kind == worker_kind, JobRow.attempt == 1)
        .order_by(JobRow.number.desc())
        .limit(HISTORY_JOBS)
    ).all()
    ids = [row.id for row in rows]
    modelled: dict[str, dict[Stage, float]] = defaultdict(dict)
    for job_id, stage, value in session.execute(
        select(MetricRow.job_id, MetricRow.stage, MetricRow.value)
        .where(MetricRow.job_id.in_(ids), MetricRow.attempt == 1, MetricRow.name == MODELLED)
        .order_by(MetricRow.number)
    ):
        modelled[job_id][stage] = value
    entered: dict[str, list[tuple[datetime, Stage]]] = defaultdict(list)
    for job_id, at, data in session.execute(
        select(JobEventRow.job_id, JobEventRow.at, JobEventRow.data)
        .where(JobEventRow.job_id.in_(ids), JobEventRow.type == EventType.STAGE)
        .order_by(JobEventRow.job_id, JobEventRow.seq)
    ):
        entered[job_id].append((at, Stage(str(data["stage"]))))
    found = []
    for row in rows:
        assert row.started_at is not None
        assert row.finished_at is not None
        seconds: dict[Stage, float] = defaultdict(float)
        marks = [(row.started_at, Stage.DOWNLOAD), *entered[row.id], (row.finished_at, Stage.PUBLISH)]
        for (begin, stage), (end, _) in pairwise(marks):
            seconds[Stage.DOWNLOAD if stage is Stage.RESOLVE else stage] += max((end - begin).total_seconds(), 0.0)
        # a runner may write a metric of this name, too
        known = {stage: value for stage, value in modelled[row.id].items() if stage in seconds and value >= 0}
        stages = {stage: (value, seconds[stage]) for stage, value in known.items()}
        try:
            spec = to_spec(row)
        except ValidationError:  # of another release
            continue
        if stages:
            found.append(PastJob(method=spec.expected_method, inputs=inputs_of(spec), stages=stages))
    return tuple(found)
