"""Conditions on rows of `jobs`: which are queued, running, due to start, and for which workers."""

from collections.abc import Sequence

from sqlalchemy import ColumnElement, and_, func, literal, or_, true

from replaceme_core.hardware import WorkerKind
from replaceme_core.ledger.clock import now
from replaceme_core.ledger.states import JobStatus
from replaceme_core.ledger.tables import JobRow

# Written into the statement and not passed as a parameter: a plan for any status cannot use a partial index on one.
QUEUED: ColumnElement[bool] = JobRow.status == literal(JobStatus.QUEUED, JobRow.status.type, literal_execute=True)
RUNNING: ColumnElement[bool] = JobRow.status == literal(JobStatus.RUNNING, JobRow.status.type, literal_execute=True)


def is_due() -> ColumnElement[bool]:
    """Neither waiting after a lost attempt nor past its deadline.

    Written so that no index is used for it: nearly all jobs are due.
    """
    return and_(
        func.coalesce(JobRow.not_before, now()) <= now(),
        func.coalesce(JobRow.deadline_at, now(plus_seconds=1)) > now(),
    )


def is_served(worker_kinds: Sequence[WorkerKind] | None) -> ColumnElement[bool]:
    """Jobs for workers of `worker_kinds`, and jobs for any worker; `None` means all kinds."""
    return true() if worker_kinds is None else or_(JobRow.worker_kind.is_(None), JobRow.worker_kind.in_(worker_kinds))
