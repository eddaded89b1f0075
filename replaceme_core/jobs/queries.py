"""Reads of jobs, lists, events, metrics and reports. Writes nothing."""

from collections.abc import Collection, Mapping

from sqlalchemy import select
from sqlalchemy.orm import Session, undefer

from replaceme_core.errors import InvalidInput, NotFound
from replaceme_core.jobs.page_cursor import from_cursor, to_cursor
from replaceme_core.jobs.records import Job, JobEvent, Metric, Page
from replaceme_core.jobs.row_mapping import to_job
from replaceme_core.jobs.states import ACTIVE, JobStatus
from replaceme_core.jobs.tables import JobEventRow, JobLabelRow, JobRow, MetricRow
from replaceme_core.jobs.transitions import find_job, is_job_id
from replaceme_core.runner.messages import Stage

_HIGHEST_SEQ = 2**31 - 1


def get(session: Session, job_id: str, *, owner: str | None) -> Job:
    """Raises `JobNotFound`, also if the job belongs to another owner."""
    return to_job(find_job(session, job_id, owner=owner))


def get_many(session: Session, job_ids: Collection[str]) -> dict[str, Job]:
    """One statement for all; ids that are no jobs are left out."""
    known = [job_id for job_id in job_ids if is_job_id(job_id)]
    rows = session.scalars(select(JobRow).where(JobRow.id.in_(known)), execution_options={"populate_existing": True})
    return {row.id: to_job(row) for row in rows}


def page(
    session: Session,
    *,
    limit: int,
    cursor: str | None,
    owner: str | None,
    status: JobStatus | None,
    labels: Mapping[str, str] | None,
) -> Page[Job]:
    """The newest jobs first. Raises `InvalidInput` (field `cursor`, `limit` or `labels`).

    A cursor is a position in the order of arrival, so new jobs neither shift a page nor repeat a job.
    """
    _check_limit(limit)
    query = select(JobRow).order_by(JobRow.number.desc()).limit(limit + 1)
    if cursor is not None:
        query = query.where(JobRow.number < from_cursor(cursor))
    if owner is not None:
        query = query.where(JobRow.owner == owner)
    if status is not None:
        query = query.where(JobRow.status == status)
    for name, value in (labels or {}).items():
        if not (name + value).isprintable():
            raise InvalidInput("the characters of a label must be printable", field="labels", value=f"{name}={value}")
        labelled = select(JobLabelRow.job_id).where(JobLabelRow.name == name, JobLabelRow.value == value)
        query = query.where(JobRow.id.in_(labelled))
    rows = session.scalars(query, execution_options={"populate_existing": True}).all()
    more = len(rows) > limit
    return Page(
        items=tuple(to_job(row) for row in rows[:limit]),
        next_cursor=to_cursor(rows[limit - 1].number) if more else None,
    )


def events(session: Session, job_id: str, *, after: int, limit: int) -> Page[JobEvent]:
    """Events in order, from `after` on. Raises `JobNotFound`, or `InvalidInput` (field `limit`)."""
    _check_limit(limit)
    find_job(session, job_id)
    rows = session.scalars(
        select(JobEventRow)
        .where(JobEventRow.job_id == job_id, JobEventRow.seq > min(max(after, 0), _HIGHEST_SEQ))
        .order_by(JobEventRow.seq)
        .limit(limit + 1)
    ).all()
    return Page(
        items=tuple(
            JobEvent(job_id=row.job_id, seq=row.seq, type=row.type, at=row.at, attempt=row.attempt, data=row.data)
            for row in rows[:limit]
        ),
        next_cursor=str(rows[limit - 1].seq) if len(rows) > limit else None,
    )


def metrics(session: Session, job_id: str) -> list[Metric]:
    """Values of the present attempt, in the order in which they were written. Raises `JobNotFound`."""
    job = find_job(session, job_id)
    rows = session.scalars(
        select(MetricRow).where(MetricRow.job_id == job_id, MetricRow.attempt == job.attempt).order_by(MetricRow.number)
    )
    return [
        Metric(
            job_id=row.job_id,
            attempt=row.attempt,
            name=row.name,
            stage=Stage(row.stage),
            block=row.block,
            candidate=row.candidate,
            value=row.value,
            unit=row.unit,
            at=row.at,
        )
        for row in rows
    ]


def report(session: Session, job_id: str) -> dict[str, object]:
    """The content of `replaceme.json`. Raises `JobNotFound`, or `NotFound` while there is none."""
    find_job(session, job_id)
    row = session.scalars(
        select(JobRow).where(JobRow.id == job_id).options(undefer(JobRow.report)),
        execution_options={"populate_existing": True},
    ).one()
    if row.report is None:
        raise NotFound(f"job {job_id!r} has no report: it is {row.status}")
    return row.report


def has_made(session: Session, job_id: str, repo_id: str, *, owner: str) -> bool:
    """Whether this job is one of the owner's and its result goes to `repo_id`."""
    job = get_many(session, [job_id]).get(job_id)
    return job is not None and job.owner == owner and job.spec.output.repo_id == repo_id


def has_active(session: Session, most: int, *, owner: str) -> bool:
    """Whether the owner has at least `most` (1 or more) jobs that are queued or running."""
    active = select(JobRow.number).where(JobRow.owner == owner, JobRow.status.in_(ACTIVE))
    return session.scalar(active.offset(most - 1).limit(1)) is not None


def active_among(session: Session, job_ids: Collection[str]) -> set[str]:
    """Those of `job_ids` whose jobs are queued or running."""
    return set(session.scalars(select(JobRow.id).where(JobRow.id.in_(job_ids), JobRow.status.in_(ACTIVE))))


def _check_limit(limit: int) -> None:
    if limit < 1:
        raise InvalidInput("the limit must be at least 1", field="limit", value=limit)
