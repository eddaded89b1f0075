"""One order of the events of all jobs, so that a client which was cut off can resume in it.

Events are written by many transactions at once, and a number taken inside of a transaction would become visible in
another order than it was taken: a reader that has seen 7 could miss 6. So an event gets its position after the commit.
The process that holds the lock on `event_feed` numbers what is visible, and commits before another process numbers
more: a reader that sees a position sees all lower ones.
"""

from dataclasses import dataclass

from sqlalchemy import bindparam, select, update
from sqlalchemy.orm import Session

from replaceme_core.ledger.reading.timeline import to_event
from replaceme_core.ledger.records import JobEvent
from replaceme_core.ledger.session import Database
from replaceme_core.ledger.tables import JobEventRow, JobRow
from replaceme_core.ledger.watching.tables import EventFeedRow
from replaceme_core.ledger.watching.totals import NumberedEvent, code_of, count

MOST_AT_ONCE = 1000


@dataclass(frozen=True, kw_only=True)
class FeedEvent:
    """An event with its place among the events of all jobs. Positions rise; they may have gaps."""

    position: int
    owner: str
    event: JobEvent


def has_unnumbered(session: Session) -> bool:
    """Whether an event has no position yet."""
    return session.scalars(select(JobEventRow.seq).where(JobEventRow.position.is_(None)).limit(1)).first() is not None


def number_events(session: Session) -> int:
    """Give positions to events that have none, at most `MOST_AT_ONCE`, and count them; returns how many there were.

    None if another process is doing it. Needs a transaction that writes.
    """
    feed = session.scalars(
        select(EventFeedRow).with_for_update(skip_locked=True), execution_options={"populate_existing": True}
    ).one_or_none()
    if feed is None:
        return 0
    found = session.execute(
        select(JobEventRow.seq, JobEventRow.at, JobEventRow.job_id, JobEventRow.type, JobEventRow.data)
        .where(JobEventRow.position.is_(None))
        .order_by(JobEventRow.seq, JobEventRow.at)  # no event of a job before an earlier one that the limit cuts off
        .limit(MOST_AT_ONCE)
    ).all()
    if not found:
        return 0
    # by time; but a clock that was set back may not turn the order within a job around
    waiting: dict[str, list[int]] = {}
    for row in found:
        waiting.setdefault(row.job_id, []).append(row.seq)
    rows = [
        {"its_job": row.job_id, "its_seq": waiting[row.job_id].pop(0), "its_position": position}
        for position, row in enumerate(sorted(found, key=lambda row: (row.at, row.job_id, row.seq)), feed.last + 1)
    ]
    session.connection().execute(
        update(JobEventRow)
        .where(JobEventRow.job_id == bindparam("its_job"), JobEventRow.seq == bindparam("its_seq"))
        .values(position=bindparam("its_position")),
        rows,
    )
    session.execute(update(EventFeedRow).values(last=feed.last + len(rows)))
    count(
        session,
        [
            NumberedEvent(job_id=row.job_id, seq=row.seq, type=row.type, code=code_of(row.type, row.data))
            for row in found
        ],
    )
    return len(rows)


def number_all(database: Database, *, most: int = 1) -> None:
    """Number what has no position yet, in at most `most` transactions; without news it only reads."""
    for _ in range(most):
        with database.session(read_only=True) as session:
            if not has_unnumbered(session):
                return
        with database.session() as session:
            if number_events(session) < MOST_AT_ONCE:
                return


def last_position(session: Session) -> int:
    """The position of the newest numbered event; 0 if there has been none."""
    return session.scalars(select(EventFeedRow.last)).one()


def events_after(session: Session, position: int, *, limit: int, owner: str | None = None) -> list[FeedEvent]:
    """Events behind `position`, in order; of one owner, or of all."""
    query = (
        select(JobEventRow, JobRow.owner)
        .join(JobRow, JobRow.id == JobEventRow.job_id)
        .where(JobEventRow.position > position)
        .order_by(JobEventRow.position)
        .limit(limit)
    )
    if owner is not None:
        query = query.where(JobRow.owner == owner)
    return [
        FeedEvent(position=row.position or 0, owner=its_owner, event=to_event(row))
        for row, its_owner in session.execute(query)
    ]
