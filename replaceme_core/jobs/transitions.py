"""The one way a job's row changes: a conditional UPDATE, and its events in the same transaction."""

import re
from collections.abc import Mapping, Sequence

from sqlalchemy import ColumnElement, delete, insert, select, update
from sqlalchemy.orm import Session

from replaceme_core.errors import JobNotFound, StaleTransition
from replaceme_core.jobs.clock import now
from replaceme_core.jobs.states import TERMINAL, EventType, JobStatus, is_allowed
from replaceme_core.jobs.tables import JobEventRow, JobRow, ShardRow

Event = tuple[EventType, Mapping[str, object]]

_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_FRESH = {"synchronize_session": False, "populate_existing": True}


def is_job_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None


def no_such_job(job_id: str) -> JobNotFound:
    return JobNotFound(f"there is no job {job_id[:64]!r}")


def change(
    session: Session,
    job_id: str,
    *where: ColumnElement[bool],
    values: Mapping[str, object],
    events: Sequence[Event] = (),
) -> JobRow | None:
    """Update the row if it still meets `where`, and write `events`. `None`: it does not, and nothing is written."""
    if not is_job_id(job_id):
        return None
    row = session.scalars(
        update(JobRow)
        .where(JobRow.id == job_id, *where)
        .values(**values, event_count=JobRow.event_count + len(events))
        .returning(JobRow),
        execution_options=_FRESH,
    ).one_or_none()
    if row is not None:
        write_events(session, row, events)
    return row


def move(
    session: Session,
    job_id: str,
    *where: ColumnElement[bool],
    old: JobStatus,
    new: JobStatus,
    values: Mapping[str, object],
    events: Sequence[Event],
) -> JobRow | None:
    """`change` from one status to another; the shards of a job go with its end.

    Raises `StaleTransition` for what the table of transitions forbids.
    """
    if not is_allowed(old, new):
        raise StaleTransition(f"a job that is {old} cannot become {new}")
    row = change(session, job_id, JobRow.status == old, *where, values={**values, "status": new}, events=events)
    if row is not None and new in TERMINAL:
        session.execute(delete(ShardRow).where(ShardRow.job_id == job_id))
    return row


def write_events(session: Session, row: JobRow, events: Sequence[Event]) -> None:
    """Number `events` as the last ones that `row.event_count` already counts."""
    first = row.event_count - len(events) + 1
    for seq, (kind, data) in enumerate(events, first):
        session.execute(
            insert(JobEventRow).values(
                job_id=row.id, seq=seq, type=kind, at=now(), attempt=row.attempt, data=dict(data)
            )
        )


def locked(session: Session, job_id: str, *, owner: str | None = None) -> JobRow:
    """The row, which no other transaction changes until this one ends. Raises `JobNotFound`."""
    return find(session, job_id, owner=owner, lock=True)


def find(session: Session, job_id: str, *, owner: str | None = None, lock: bool = False) -> JobRow:
    """The row as it stands. Raises `JobNotFound`, also where it belongs to someone else than `owner`."""
    if not is_job_id(job_id):
        raise no_such_job(job_id)
    query = select(JobRow).where(JobRow.id == job_id)
    if owner is not None:
        query = query.where(JobRow.owner == owner)
    if lock:
        query = query.with_for_update(key_share=True)
    row = session.scalars(query, execution_options={"populate_existing": True}).one_or_none()
    if row is None:
        raise no_such_job(job_id)
    return row
