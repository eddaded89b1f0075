"""Jobs of any owner, for tests and benchmarks. The product has no such function."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from replaceme_core.ledger.tables import JobRow


def owner_of(session: Session, job_id: str) -> str:
    """Whose job it is; "" for an id that is none."""
    return session.scalars(select(JobRow.owner).where(JobRow.id == job_id)).one_or_none() or ""
