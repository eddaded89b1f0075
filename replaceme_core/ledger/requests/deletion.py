"""Deletion of finished jobs with all that is stored about them: on request, and by age."""

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from replaceme_core.errors import StaleTransition
from replaceme_core.ledger.clock import now
from replaceme_core.ledger.states import TERMINAL
from replaceme_core.ledger.tables import JobRow
from replaceme_core.ledger.transitions import lock_job


def delete_job(session: Session, job_id: str, *, owner: str | None) -> None:
    """Delete a finished job. Raises `JobNotFound`, or `StaleTransition` while the job has not finished."""
    row = lock_job(session, job_id, owner=owner)
    if row.status not in TERMINAL:
        raise StaleTransition(
            f"job {job_id} is {row.status}; only a job that has finished can be deleted, so cancel it"
        )
    session.execute(delete(JobRow).where(JobRow.number == row.number))


def delete_finished(session: Session, *, older_than_seconds: float, limit: int) -> int:
    """Delete up to `limit` jobs that finished longer ago than that, the oldest first; returns how many.

    Rows that another sweep has locked are skipped.
    """
    old = session.scalars(
        select(JobRow.number)
        .where(JobRow.finished_at < now(plus_seconds=-older_than_seconds))
        .order_by(JobRow.finished_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).all()
    if old:
        session.execute(delete(JobRow).where(JobRow.number.in_(old)))
    return len(old)
