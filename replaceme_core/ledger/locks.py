"""A lock on a name, for what no row stands for."""

from sqlalchemy import func, literal, select
from sqlalchemy.orm import Session


def lock_until_commit(session: Session, name: str) -> None:
    """Let one transaction at a time go on that asks for this name. On SQLite one at a time writes anyway.

    What another one has committed meanwhile is seen by the next statement.
    """
    if session.get_bind().dialect.name == "postgresql":
        session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(literal(name), 0))))
