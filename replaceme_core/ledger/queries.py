"""Reads of jobs, events, metrics and reports. Writes nothing."""

from collections.abc import Collection

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session, undefer

from replaceme_core.errors import NotFound
from replaceme_core.ledger.locks import lock_until_commit
from replaceme_core.ledger.reading.lists import check_limit
from replaceme_core.ledger.reading.snapshots import get_snapshots
from replaceme_core.ledger.reading.timeline import to_event
from replaceme_core.ledger.records import Job, JobEvent, Metric, Page
from replaceme_core.ledger.row_mapping import to_job
from replaceme_core.ledger.states import ACTIVE
from replaceme_core.ledger.tables import JobEventRow, JobRow, MetricRow
from replaceme_core.ledger.transitions import find_job, is_job_id
from replaceme_core.runner.messages import Stage

_HIGHEST_SEQ = 2**31 - 1
_MOST_AT_ONCE = 256
"""Jobs of one owner that all API processes together may be adding at the same moment."""


def get(session: Session, job_id: str, *, owner: str | None) -> Job:
    """Raises `JobNotFound`, also if the job belongs to another owner."""
    return to_job(find_job(session, job_id, owner=owner))


def get_many(session: Session, job_ids: Collection[str]) -> dict[str, Job]:
    """One statement for all; ids that are no jobs are left out."""
    known = [job_id for job_id in job_ids if is_job_id(job_id)]
    rows = session.scalars(select(JobRow).where(JobRow.id.in_(known)), execution_options={"populate_existing": True})
    return {row.id: to_job(row) for row in rows}


def events(session: Session, job_id: str, *, after: int, limit: int) -> Page[JobEvent]:
    """Events in order, from `after` on. Raises `JobNotFound`, or `InvalidInput` (field `limit`)."""
    check_limit(limit)
    find_job(session, job_id)
    rows = session.scalars(
        select(JobEventRow)
        .where(JobEventRow.job_id == job_id, JobEventRow.seq > min(max(after, 0), _HIGHEST_SEQ))
        .order_by(JobEventRow.seq)
        .limit(limit + 1)
    ).all()
    return Page(
        items=tuple(to_event(row) for row in rows[:limit]),
        next_cursor=str(rows[limit - 1].seq) if len(rows) > limit else None,
    )


def last_event(session: Session, job_id: str) -> JobEvent:
    """The newest event. Raises `JobNotFound`."""
    row = find_job(session, job_id)
    return to_event(
        session.scalars(
            select(JobEventRow).where(JobEventRow.job_id == job_id, JobEventRow.seq == row.event_count)
        ).one()
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
    found = get_snapshots(session, [(job_id, owner)]).values()
    return any(snapshot.job().spec.output.repo_id == repo_id for snapshot in found)


def has_active(session: Session, most: int, *, owner: str, exact: bool) -> bool:
    """Whether the owner has at least `most` (1 or more) jobs that are queued or running.

    `exact`: near that number, transactions that are about to add one wait for each other, so that each one counts.
    """
    if exact:
        if most > _MOST_AT_ONCE and not _is_reached(session, most - _MOST_AT_ONCE, owner):
            return False
        lock_until_commit(session, f"jobs of {owner}")
    return _is_reached(session, most, owner)


_ONE_ACTIVE = (
    select(JobRow.__table__.c.number)
    .where(JobRow.__table__.c.owner == bindparam("owner"), JobRow.__table__.c.status.in_(ACTIVE))
    .offset(bindparam("before"))
    .limit(1)
)
"""Built once: each submission would spend more on building it than on running it."""


def _is_reached(session: Session, number: int, owner: str) -> bool:
    return session.execute(_ONE_ACTIVE, {"owner": owner, "before": number - 1}).first() is not None


def active_among(session: Session, job_ids: Collection[str]) -> set[str]:
    """Those of `job_ids` whose jobs are queued or running."""
    return set(session.scalars(select(JobRow.id).where(JobRow.id.in_(job_ids), JobRow.status.in_(ACTIVE))))
