"""Limits of jobs that run at the same time: for the jobs that were submitted with one API key."""

from collections.abc import Collection

from sqlalchemy import ColumnElement, func, or_, select
from sqlalchemy.orm import Session

from replaceme_core.ledger.access.tables import ApiKeyRow
from replaceme_core.ledger.locks import lock_until_commit
from replaceme_core.ledger.scheduling.eligibility import RUNNING
from replaceme_core.ledger.tables import JobRow


def keys_at_limit(session: Session) -> set[str]:
    """The ids of keys of which as many jobs are running as may."""
    counted = select(JobRow.key_id, func.count()).where(RUNNING, JobRow.key_id.is_not(None)).group_by(JobRow.key_id)
    running = {key_id: number for key_id, number in session.execute(counted) if key_id is not None}
    if not running:
        return set()
    limits = session.execute(select(ApiKeyRow.id, ApiKeyRow.running_jobs).where(ApiKeyRow.id.in_(running)))
    return {key_id for key_id, most in limits if most and running[key_id] >= most}


def is_below_limit(full: Collection[str]) -> tuple[ColumnElement[bool], ...]:
    """The condition for jobs of other keys than `full`; empty if there are none, so that plans stay as they are."""
    return (or_(JobRow.key_id.is_(None), JobRow.key_id.not_in(full)),) if full else ()


def has_place(session: Session, job: JobRow) -> bool:
    """Whether one more job of its key may run. Two transactions that ask for one key wait for each other."""
    if job.key_id is None:
        return True
    most = session.scalars(select(ApiKeyRow.running_jobs).where(ApiKeyRow.id == job.key_id)).one_or_none()
    if not most:
        return True
    lock_until_commit(session, f"running jobs of {job.key_id}")
    running = select(func.count()).select_from(JobRow).where(RUNNING, JobRow.key_id == job.key_id)
    return session.scalars(running).one() < most
