"""The next job to start: the highest priority, then the owner with the fewest running jobs, then the owner whose last
start is the longest ago, then the oldest job.

So within one priority no owner's hundred jobs delay another owner's single job, even with a single worker. Each
statement is answered by an index; its cost grows with the number of owners, not of jobs.
"""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, ScalarSelect, Select, func, literal, or_, select, union_all
from sqlalchemy.orm import Session, aliased

from replaceme_core.hardware import WorkerKind
from replaceme_core.ledger.scheduling.eligibility import QUEUED, RUNNING, is_due, is_served
from replaceme_core.ledger.scheduling.running_limits import has_place, is_below_limit, keys_at_limit
from replaceme_core.ledger.tables import JobRow
from replaceme_core.request.spec import HIGHEST_PRIORITY

Conditions = tuple[ColumnElement[bool], ...]
Subqueue = Conditions
"""The condition for queued jobs of one worker kind, so that an index finds the first of them; empty for all jobs."""


def lock_next_job(session: Session, *, worker_kinds: Sequence[WorkerKind] | None = None) -> JobRow | None:
    """The row of the queued job to start next, locked; `None` if no job can start. `worker_kinds`: see `is_served`.

    Jobs of a key are passed over while as many of them run as may. On PostgreSQL rows that another worker has locked
    are skipped. Two workers that ask at the very same moment do not yet see each other's job as running, except for
    that limit.
    """
    full = keys_at_limit(session)
    while (row := _lock_first(session, worker_kinds, is_below_limit(full))) is not None:
        if has_place(session, row):
            return row
        assert row.key_id is not None  # only a key has a limit
        full.add(row.key_id)
    return None


def _lock_first(session: Session, worker_kinds: Sequence[WorkerKind] | None, allowed: Conditions) -> JobRow | None:
    subqueues = _subqueues(worker_kinds)
    for priority in _priorities(session, subqueues):
        for owner, index in _owners(session, priority, subqueues, allowed):
            row = session.scalars(
                select(JobRow)
                .where(QUEUED, *subqueues[index], JobRow.priority == priority, JobRow.owner == owner)
                .where(is_due(), *allowed)
                .order_by(JobRow.number)
                .limit(1)
                .with_for_update(skip_locked=True, key_share=True),
                execution_options={"populate_existing": True},
            ).one_or_none()
            if row is not None:
                return row
    return None


def has_startable_job(session: Session, *, worker_kinds: Sequence[WorkerKind] | None) -> bool:
    """Whether a queued job for these kinds of workers, or for any, could start now."""
    allowed = is_below_limit(keys_at_limit(session))
    waiting = select(JobRow.number).where(QUEUED, is_due(), is_served(worker_kinds), *allowed).limit(1)
    return session.scalars(waiting).one_or_none() is not None


def last_start(owner: ColumnElement[str]) -> ScalarSelect[datetime | None]:
    """When a job of this owner was last started for the first time; null if none ever was."""
    return (
        select(JobRow.started_at)
        .where(JobRow.owner == owner, JobRow.started_at.is_not(None))
        .order_by(JobRow.started_at.desc())
        .limit(1)
        .scalar_subquery()
    )


def _subqueues(worker_kinds: Sequence[WorkerKind] | None) -> list[Subqueue]:
    return (
        [()]
        if worker_kinds is None
        else [(JobRow.worker_kind.is_(None),), *((JobRow.worker_kind == worker_kind,) for worker_kind in worker_kinds)]
    )


def _priorities(session: Session, subqueues: Sequence[Subqueue]) -> list[int]:
    """The priorities of queued jobs, the highest first."""
    every = (select(literal(priority).label("priority")) for priority in range(HIGHEST_PRIORITY + 1))
    each = union_all(*every).subquery("priorities")
    # One look into the index for each priority: for the highest alone, SQLite would sort the whole queue. The ORDER BY
    # names the index: without it PostgreSQL may search another one, through the whole queue.
    waiting = (
        select(JobRow.owner)
        .where(QUEUED, *subqueue, JobRow.priority == each.c.priority)
        .order_by(JobRow.owner)
        .limit(1)
        .scalar_subquery()
        for subqueue in subqueues
    )
    query = select(each.c.priority).where(or_(*(found.is_not(None) for found in waiting)))
    return list(session.scalars(query.order_by(each.c.priority.desc())))


def _owners(
    session: Session, priority: int, subqueues: Sequence[Subqueue], allowed: Conditions
) -> list[tuple[str, int]]:
    """Owners of jobs of this priority that can start, in the order in which they are served, each with the index of
    the subqueue.

    An owner with jobs in several subqueues appears once for each, the one with the oldest job first.
    """
    each = (_owners_in(subqueue, index, priority, allowed) for index, subqueue in enumerate(subqueues))
    found = union_all(*each).subquery()
    query = (
        select(found.c.owner, found.c.subqueue)
        .where(found.c.oldest.is_not(None))
        .order_by(found.c.running, found.c.served.nulls_first(), found.c.oldest)
    )
    return [(owner, index) for owner, index in session.execute(query)]


def _owners_in(
    subqueue: Subqueue, index: int, priority: int, allowed: Conditions
) -> Select[str, int, int | None, int, datetime | None]:
    waiting = (QUEUED, *subqueue, JobRow.priority == priority)

    def first(*where: ColumnElement[bool]) -> ScalarSelect[str]:
        return select(JobRow.owner).where(*waiting, *where).order_by(JobRow.owner).limit(1).scalar_subquery()

    # a recursive query from owner to owner through the index, instead of over all their jobs
    owners = select(first().label("owner")).cte(f"owners_{index}", recursive=True)
    before = aliased(owners)
    owners = owners.union_all(select(first(JobRow.owner > before.c.owner)).where(before.c.owner.is_not(None)))
    oldest = (
        select(JobRow.number)
        .where(*waiting, JobRow.owner == owners.c.owner, is_due(), *allowed)
        .order_by(JobRow.number)
        .limit(1)
        .scalar_subquery()
    )
    running = select(func.count()).where(RUNNING, JobRow.owner == owners.c.owner).scalar_subquery()
    return select(
        owners.c.owner,
        literal(index).label("subqueue"),
        oldest.label("oldest"),
        running.label("running"),
        last_start(owners.c.owner).label("served"),
    )
