"""One request for many jobs."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from replaceme_core.ledger.attempts import outcomes
from replaceme_core.ledger.reading.lists import JobFilters
from replaceme_core.ledger.records import BulkCancel
from replaceme_core.ledger.states import ACTIVE
from replaceme_core.ledger.tables import JobRow


def cancel_matching(session: Session, *, owner: str, filters: JobFilters, limit: int) -> BulkCancel:
    """Ask to cancel up to `limit` queued and running jobs that match, the oldest first.

    Jobs that somebody has asked to cancel before are passed over, so that the next call goes on where this one ended.
    Raises `InvalidInput` (field `labels`).
    """
    found = session.scalars(
        select(JobRow.id)
        .where(*filters.conditions(owner=owner), JobRow.status.in_(ACTIVE), JobRow.cancel_requested_at.is_(None))
        .order_by(JobRow.number)
        .limit(limit + 1)
        .with_for_update(key_share=True)
    ).all()
    for job_id in found[:limit]:
        outcomes.request_cancel(session, job_id, owner=owner)
    rows = session.execute(select(JobRow.id, JobRow.status).where(JobRow.id.in_(found[:limit])).order_by(JobRow.number))
    return BulkCancel(statuses=dict(rows.all()), more=len(found) > limit)
