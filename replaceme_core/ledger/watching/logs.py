"""The last lines that the runners of a job wrote."""

from collections.abc import Sequence

from sqlalchemy import delete, func, insert, select
from sqlalchemy.orm import Session

from replaceme_core.ledger.attempts.leases import lock_claimed
from replaceme_core.ledger.clock import now
from replaceme_core.ledger.reading.lists import check_limit
from replaceme_core.ledger.records import Claim, LogLine, Page
from replaceme_core.ledger.transitions import find_job, storable
from replaceme_core.ledger.watching.tables import JobLogRow

KEPT_LINES = 1000
LONGEST_LINE = 2000
_HIGHEST_NUMBER = 2**31 - 1


class Logs:
    """The logs of jobs within one transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, claim: Claim, lines: Sequence[str]) -> None:
        """Append to the log of the job, of which the last lines are kept. Raises `LeaseLost`."""
        add_lines(self._session, claim, lines)

    def page(self, job_id: str, *, after: int = 0, limit: int = 100) -> Page[LogLine]:
        """Lines with a number above `after`, oldest first. Raises `JobNotFound`, `InvalidInput` (limit)."""
        return read_lines(self._session, job_id, after=after, limit=limit)


def add_lines(session: Session, claim: Claim, lines: Sequence[str]) -> None:
    """Append lines, and delete what is more than `KEPT_LINES`. Raises `LeaseLost`."""
    lock_claimed(session, claim)
    highest = select(func.coalesce(func.max(JobLogRow.number), 0)).where(JobLogRow.job_id == claim.job_id)
    last = session.scalars(highest).one()
    rows = [
        {"number": number, "text": storable(line)[:LONGEST_LINE]}
        for number, line in enumerate(lines[-KEPT_LINES:], last + 1)
    ]
    if not rows:
        return
    session.execute(insert(JobLogRow).values(job_id=claim.job_id, attempt=claim.attempt, at=now()), rows)
    old = JobLogRow.number <= last + len(rows) - KEPT_LINES
    session.execute(delete(JobLogRow).where(JobLogRow.job_id == claim.job_id, old))


def read_lines(session: Session, job_id: str, *, after: int, limit: int) -> Page[LogLine]:
    """Lines with a number above `after`, oldest first. Raises `JobNotFound`, or `InvalidInput` (field `limit`)."""
    check_limit(limit)
    find_job(session, job_id)
    rows = session.scalars(
        select(JobLogRow)
        .where(JobLogRow.job_id == job_id, JobLogRow.number > min(max(after, 0), _HIGHEST_NUMBER))
        .order_by(JobLogRow.number)
        .limit(limit + 1)
    ).all()
    return Page(
        items=tuple(LogLine(number=row.number, at=row.at, attempt=row.attempt, text=row.text) for row in rows[:limit]),
        next_cursor=str(rows[limit - 1].number) if len(rows) > limit else None,
    )
