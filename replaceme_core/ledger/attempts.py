"""An attempt at a job, from claim to end: the lease, what the worker records meanwhile, and how the attempt ends.

Every write of a worker is conditional on the token of its claim. The token is new for each claim, so a worker whose
lease has expired cannot write over its successor. Times are the database's, since the clocks of two workers may differ.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import uuid4

from sqlalchemy import ColumnElement, case, delete, func, insert, select
from sqlalchemy.orm import Session

from replaceme_core.errors import LeaseLost, StaleTransition
from replaceme_core.hardware import WorkerKind, worker_kind_of
from replaceme_core.ledger.database import now
from replaceme_core.ledger.records import Claim, Job, JobEvent, stored_spec, to_job
from replaceme_core.ledger.scheduling import lock_next_job
from replaceme_core.ledger.states import TERMINAL, EventType, JobStatus
from replaceme_core.ledger.tables import JobEventRow, JobLogRow, JobRow, MetricRow
from replaceme_core.ledger.transitions import (
    Event,
    failure,
    no_such_job,
    read_job,
    storable,
    transition,
    update_job,
)
from replaceme_core.report.reading import Report
from replaceme_core.request.gate import GateResult
from replaceme_core.request.spec import CompressionSpec
from replaceme_core.runner.messages import LONGEST_LINE, Measured, Stage
from replaceme_core.telemetry import Origin
from replaceme_core.wording import json_safe


def claim_next(
    session: Session, *, worker: str, lease_seconds: float, worker_kinds: Sequence[WorkerKind] | None = None
) -> Claim | None:
    """Start the next attempt at the job that is first in the queue; `None` if no job can start.

    `worker` is for display only.
    """
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
            "attempt": JobRow.attempt + 1,
            "lease_token": token,
            "lease_expires_at": now(plus_seconds=lease_seconds),
            "worker": worker,
            "started_at": func.coalesce(JobRow.started_at, now()),
            "deadline_at": case((JobRow.started_at.is_(None), deadline), else_=JobRow.deadline_at),
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
    if read_job(session, claim.job_id, *_is_claimed(claim), JobRow.lease_expires_at > now()) is None:
        raise _lost(claim)


def _lock_claimed(session: Session, claim: Claim) -> JobRow:
    """The row of the job, locked: no sweep requeues it before this transaction ends. Raises `LeaseLost`."""
    row = read_job(session, claim.job_id, *_is_claimed(claim), lock=True)
    if row is None:
        raise _lost(claim)
    return row


def update_claimed(
    session: Session, claim: Claim, *, values: Mapping[str, object], events: Sequence[Event] = ()
) -> JobRow:
    """`update_job` if the claim is still the present one. Raises `LeaseLost`."""
    row = update_job(session, claim.job_id, *_is_claimed(claim), values=values, events=events)
    if row is None:
        raise _lost(claim)
    return row


def job_of(session: Session, claim: Claim) -> Job:
    """The job as it is now, also after another worker has claimed it. Raises `JobNotFound` if it has been deleted."""
    row = read_job(session, claim.job_id)
    if row is None:
        raise no_such_job(claim.job_id)
    return to_job(row)


def history(session: Session, claim: Claim) -> tuple[JobEvent, ...]:
    """All events of the job, the oldest first."""
    rows = session.scalars(select(JobEventRow).where(JobEventRow.job_id == claim.job_id).order_by(JobEventRow.seq))
    return tuple(JobEvent.of(row) for row in rows)


def _is_claimed(claim: Claim) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    """The job is running under this claim, whether the lease has expired or not."""
    return JobRow.status == JobStatus.RUNNING, JobRow.lease_token == claim.token


def _lost(claim: Claim) -> LeaseLost:
    """The error of a write whose claim is not the present one."""
    return LeaseLost(f"attempt {claim.attempt} has lost its lease on job {claim.job_id}")


def record_spec(session: Session, claim: Claim, spec: CompressionSpec) -> None:
    """Store the specification with every default filled in; priority and limits stay. Raises `LeaseLost`.

    Once it names a device, only workers that have it can start another attempt.
    """
    worker_kind = worker_kind_of(spec.compute.device)
    values = {"spec": stored_spec(spec)}
    update_claimed(session, claim, values=values | ({} if worker_kind is None else {"worker_kind": worker_kind}))


@dataclass(frozen=True, kw_only=True)
class Step:
    """How far an attempt is: `overall` and `fraction` (of the stage) are from 0 to 1."""

    stage: Stage
    overall: float
    fraction: float
    eta_seconds: float | None
    eta_error_seconds: float | None = None
    resumed_from: Stage | None = None


def record_progress(session: Session, claim: Claim, step: Step) -> None:
    """Store it, and an event if the stage is new. Raises `LeaseLost`.

    From the second attempt on, the event of `solve` names the stage whose result was resumed from, or null.
    """
    row = _lock_claimed(session, claim)
    values = {
        "stage": step.stage,
        "overall": min(max(step.overall, 0.0), 1.0),
        "stage_fraction": min(max(step.fraction, 0.0), 1.0),
        "eta_seconds": _seconds(step.eta_seconds),
        "eta_error_seconds": _seconds(step.eta_error_seconds),
    }
    data: dict[str, object] = {"stage": step.stage.value}
    if step.stage is Stage.SOLVE and claim.attempt > 1:
        data["resumed_from"] = None if step.resumed_from is None else step.resumed_from.value
    update_claimed(session, claim, values=values, events=[] if row.stage is step.stage else [(EventType.STAGE, data)])


_LONGEST_SECONDS = 3_153_600_000.0
"""A hundred years: the calendar has no room for more, and a runner says how long it takes."""


def _seconds(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else min(max(value, 0.0), _LONGEST_SECONDS)


def add_metrics(session: Session, claim: Claim, measured: Sequence[Measured]) -> None:
    """Store all of `measured`, whose values are finite, or nothing. Raises `LeaseLost`."""
    _lock_claimed(session, claim)
    if measured:
        session.execute(
            insert(MetricRow).values(job_id=claim.job_id, attempt=claim.attempt, at=now()),
            [value.model_dump(exclude={"type"}) for value in measured],
        )


KEPT_LINES = 1000
"""Of the log of a job."""


def add_log(session: Session, claim: Claim, lines: Sequence[str]) -> None:
    """Append to the log of the job, of which the last lines are kept. Raises `LeaseLost`."""
    _lock_claimed(session, claim)
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


def succeed(
    session: Session,
    claim: Claim,
    *,
    repo_id: str,
    revision: str,
    report: Mapping[str, object],
) -> None:
    """running -> succeeded. Raises `LeaseLost`, or `StaleTransition` if this claim has finished the job before."""
    content = Report(report)
    removed, kept = map(content.blocks, ("removed_blocks", "kept_blocks"))
    result = {
        "repo_id": repo_id,
        "revision": revision,
        "removed_blocks": removed,
        "kept_blocks": kept,
        "warnings": [
            {name: storable(content.text(*base, name)) for name in ("code", "message")}
            for base in content.places("warnings")
            if content.text(*base, "code")
        ],
        # without an evaluation the report has the blocks only
        "summary": {
            "blocks": {"before": len(removed) + len(kept), "after": len(kept)},
            **{
                name: {side: content.number(side, name) for side in ("before", "after")}
                for name in ("parameters", "perplexity")
            },
        },
    }
    _finish(
        session,
        claim,
        JobStatus.SUCCEEDED,
        values={"result": result, **_of_report(report), "overall": 1.0, "stage_fraction": 1.0},
        event=(EventType.SUCCEEDED, {"repo_id": repo_id, "revision": revision}),
    )


def _of_report(report: Mapping[str, object]) -> dict[str, object]:
    """The columns that a report fills."""
    gate = GateResult.in_report(report)
    # PostgreSQL refuses NaN, and it may be a file that somebody has changed on the Hub
    return {"report": json_safe(report, name=str), "gate": None if gate is None else gate.model_dump(mode="json")}


def fail(
    session: Session, claim: Claim, *, code: str, message: str, report: Mapping[str, object] | None = None
) -> None:
    """running -> failed. `code` is one of `replaceme_core.errors`; `report` is that of a result which is not published.

    Raises as `succeed` does.
    """
    values, event = failure(code, message)
    _finish(session, claim, JobStatus.FAILED, values=values | (_of_report(report) if report else {}), event=event)


def finish_cancelled(session: Session, claim: Claim) -> None:
    """running -> cancelled. Raises as `succeed` does."""
    _finish(session, claim, JobStatus.CANCELLED, values={}, event=(EventType.CANCELLED, {}))


def release(session: Session, claim: Claim, *, reason: str, counts: bool = True, pause_seconds: float = 0.0) -> None:
    """running -> queued, or -> cancelled if that was requested. `counts`: as an attempt. Raises as `succeed` does.

    It may start again after the pause. The next sweep of any worker enqueues it then, since `enqueued_at` is null.
    """
    row = transition(
        session,
        claim.job_id,
        *_is_claimed(claim),
        JobRow.cancel_requested_at.is_(None),
        old=JobStatus.RUNNING,
        new=JobStatus.QUEUED,
        values={
            "not_before": now(plus_seconds=pause_seconds) if pause_seconds else None,
            "uncounted_attempts": JobRow.uncounted_attempts + (0 if counts else 1),
        },
        events=[(EventType.RELEASED, {"reason": storable(reason)})],
    )
    if row is None:
        finish_cancelled(session, claim)


def _finish(session: Session, claim: Claim, new: JobStatus, *, values: Mapping[str, object], event: Event) -> None:
    row = transition(
        session, claim.job_id, *_is_claimed(claim), old=JobStatus.RUNNING, new=new, values=values, events=[event]
    )
    if row is not None:
        return
    present = read_job(session, claim.job_id)  # None: it has ended without this claim, and was deleted
    if present is not None and present.lease_token == claim.token and present.status in TERMINAL:
        raise StaleTransition(f"job {claim.job_id} is already {present.status}")
    raise _lost(claim)
