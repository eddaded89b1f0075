"""The lease on a job: claim, renew, check. Every write of a worker is conditional on the token of its claim.

The token is new for each claim, so a worker whose lease has expired cannot write over its successor. Times are the
database's, since the clocks of two workers may differ.
"""

from collections.abc import Mapping, Sequence
from uuid import uuid4

from sqlalchemy import ColumnElement, case, func, select
from sqlalchemy.orm import Session

from replaceme_core.errors import LeaseLost
from replaceme_core.hardware import WorkerKind
from replaceme_core.ledger.clock import now
from replaceme_core.ledger.records import Claim
from replaceme_core.ledger.scheduling.next_job import lock_next_job
from replaceme_core.ledger.states import EventType, JobStatus
from replaceme_core.ledger.tables import JobRow
from replaceme_core.ledger.transitions import NO_PROGRESS, Event, transition, update_job
from replaceme_core.telemetry import Origin


def claim_next(
    session: Session, *, worker: str, lease_seconds: float, worker_kinds: Sequence[WorkerKind] | None
) -> Claim | None:
    """Start the next attempt at the job that is first in the queue; `None` if no job can start."""
    row = lock_next_job(session, worker_kinds=worker_kinds)
    return None if row is None else start_attempt(session, row, worker=worker, lease_seconds=lease_seconds)


def start_attempt(session: Session, job: JobRow, *, worker: str, lease_seconds: float) -> Claim | None:
    """queued -> running, attempt + 1, with a new token; `None` if the job is no longer queued."""
    token, limit = uuid4().hex, job.max_runtime_seconds
    deadline = None if limit is None else now(plus_seconds=limit)
    row = transition(
        session,
        job.id,
        old=JobStatus.QUEUED,
        new=JobStatus.RUNNING,
        values={
            **NO_PROGRESS,
            "attempt": JobRow.attempt + 1,
            "lease_token": token,
            "lease_expires_at": now(plus_seconds=lease_seconds),
            "worker": worker,
            "started_at": func.coalesce(JobRow.started_at, now()),
            "deadline_at": case((JobRow.started_at.is_(None), deadline), else_=JobRow.deadline_at),
            "not_before": None,
        },
        events=[(EventType.CLAIMED, {"worker": worker})],
    )
    if row is None:
        return None
    seconds_left = None
    if row.deadline_at is not None:
        seconds_left = (row.deadline_at - session.scalars(select(now())).one()).total_seconds()
    return Claim(
        job_id=row.id,
        token=token,
        attempt=row.attempt,
        seconds_left=seconds_left,
        uncounted_attempts=row.uncounted_attempts,
        origin=Origin(request_id=row.request_id, traceparent=row.traceparent),
    )


def renew(session: Session, claim: Claim, *, lease_seconds: float) -> bool:
    """Extend the lease; returns whether a cancel was requested. Raises `LeaseLost`.

    An expired lease can be renewed as long as no sweep has requeued the job.
    """
    row = update_claimed(session, claim, values={"lease_expires_at": now(plus_seconds=lease_seconds)})
    return row.cancel_requested_at is not None


def assert_held(session: Session, claim: Claim) -> None:
    """Raises `LeaseLost` if the token is old or the lease has expired, since another worker may have the job by now."""
    query = select(JobRow.id).where(JobRow.id == claim.job_id, *is_claimed(claim), JobRow.lease_expires_at > now())
    if session.scalars(query).one_or_none() is None:
        raise lost(claim)


def lock_claimed(session: Session, claim: Claim) -> JobRow:
    """The row of the job, locked: no sweep requeues it before this transaction ends. Raises `LeaseLost`."""
    row = session.scalars(
        select(JobRow).where(JobRow.id == claim.job_id, *is_claimed(claim)).with_for_update(key_share=True),
        execution_options={"populate_existing": True},
    ).one_or_none()
    if row is None:
        raise lost(claim)
    return row


def update_claimed(
    session: Session, claim: Claim, *, values: Mapping[str, object], events: Sequence[Event] = ()
) -> JobRow:
    """`update_job` if the claim is still the present one. Raises `LeaseLost`."""
    row = update_job(session, claim.job_id, *is_claimed(claim), values=values, events=events)
    if row is None:
        raise lost(claim)
    return row


def has_token(claim: Claim) -> ColumnElement[bool]:
    """The present or, in a finished job, the last claim is this one."""
    return JobRow.lease_token == claim.token


def is_claimed(claim: Claim) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    """The job is running under this claim, whether the lease has expired or not."""
    return JobRow.status == JobStatus.RUNNING, has_token(claim)


def lost(claim: Claim) -> LeaseLost:
    """The error of a write whose claim is not the present one."""
    return LeaseLost(f"attempt {claim.attempt} has lost its lease on job {claim.job_id}")
