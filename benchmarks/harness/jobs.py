"""Jobs of any owner, for tests and benchmarks. The product has no such function."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from replaceme_core.ledger import reading
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.records import Job, JobEvent
from replaceme_core.ledger.tables import JobRow, is_uuid
from replaceme_core.shapes import Metric


def owner_of(session: Session, job_id: str) -> str:
    """Whose job it is; "" for an id that is none."""
    query = select(JobRow.owner).where(JobRow.id == job_id)
    return (session.scalars(query).one_or_none() if is_uuid(job_id) else None) or ""


def job_of(database: Database, job_id: str) -> Job:
    with database.session(read_only=True) as session:
        return reading.get(session, job_id, owner=owner_of(session, job_id))


def events_of(database: Database, job_id: str) -> tuple[JobEvent, ...]:
    with database.session(read_only=True) as session:
        return reading.events(session, job_id, limit=1000, owner=owner_of(session, job_id)).items


def metrics_of(database: Database, job_id: str) -> list[Metric]:
    with database.session(read_only=True) as session:
        return reading.metrics(session, job_id, owner=owner_of(session, job_id))


def report_of(database: Database, job_id: str) -> dict[str, object]:
    with database.session(read_only=True) as session:
        return reading.report(session, job_id, owner=owner_of(session, job_id))
