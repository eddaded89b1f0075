"""How an attempt ends: its job has succeeded, failed, is cancelled, or returns to the queue."""

import math
from collections.abc import Mapping, Sequence

from sqlalchemy import ColumnElement
from sqlalchemy.orm import Session

from replaceme_core.errors import StaleTransition
from replaceme_core.ledger.attempts.leases import has_token, lost
from replaceme_core.ledger.clock import now
from replaceme_core.ledger.records import Claim
from replaceme_core.ledger.states import TERMINAL, EventType, JobStatus
from replaceme_core.ledger.tables import JobRow
from replaceme_core.ledger.transitions import (
    NO_LEASE,
    NO_PROGRESS,
    Event,
    find_job,
    finished,
    lock_job,
    storable,
    transition,
    update_job,
)
from replaceme_core.request.gate import GateResult


def succeed(
    session: Session,
    claim: Claim,
    *,
    repo_id: str,
    revision: str,
    removed_blocks: Sequence[int],
    kept_blocks: Sequence[int],
    report: Mapping[str, object],
) -> None:
    """running -> succeeded. Raises `LeaseLost`, or `StaleTransition` if this claim has finished the job before."""
    result = {
        "repo_id": repo_id,
        "revision": revision,
        "removed_blocks": list(removed_blocks),
        "kept_blocks": list(kept_blocks),
        "warnings": _warnings(report),
        "summary": _summary(report, removed=len(removed_blocks), kept=len(kept_blocks)),
    }
    _finish(
        session,
        claim,
        JobStatus.SUCCEEDED,
        values={"result": result, **_of_report(report), "overall": 1.0, "stage_fraction": 1.0},
        event=(EventType.SUCCEEDED, {"repo_id": repo_id, "revision": revision}),
    )


def _summary(report: Mapping[str, object], *, removed: int, kept: int) -> dict[str, dict[str, float | None]]:
    """Both models side by side, as it is stored; without an evaluation the report has the blocks only."""
    return {
        "blocks": {"before": removed + kept, "after": kept},
        **{
            name: {side: _measured(report.get(side), name) for side in ("before", "after")}
            for name in ("parameters", "perplexity")
        },
    }


def _measured(side: object, name: str) -> float | None:
    value = side.get(name) if isinstance(side, dict) else None
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if usable else None


def _warnings(report: Mapping[str, object]) -> list[dict[str, str]]:
    """The warnings of a report, as they are stored; the report of an earlier version has none."""
    found = report.get("warnings")
    return [
        {"code": storable(str(one["code"])), "message": storable(str(one["message"]))}
        for one in (found if isinstance(found, list) else [])
        if isinstance(one, dict) and {"code", "message"} <= one.keys()
    ]


def _of_report(report: Mapping[str, object]) -> dict[str, object]:
    """The columns that a report fills."""
    gate = GateResult.in_report(report)
    return {"report": dict(report), "gate": None if gate is None else gate.model_dump(mode="json")}


def fail(
    session: Session, claim: Claim, *, code: str, message: str, report: Mapping[str, object] | None = None
) -> None:
    """running -> failed. `report` is that of a result which is not published. Raises as `succeed` does."""
    error = {"code": code, "message": storable(message)}
    _finish(
        session,
        claim,
        JobStatus.FAILED,
        values={"error_code": code, "error_message": error["message"], **(_of_report(report) if report else {})},
        event=(EventType.FAILED, error),
    )


def finish_cancelled(session: Session, claim: Claim) -> None:
    """running -> cancelled. Raises as `succeed` does."""
    _finish(session, claim, JobStatus.CANCELLED, values={}, event=(EventType.CANCELLED, {}))


def release(session: Session, claim: Claim, *, reason: str, counts: bool) -> None:
    """running -> queued, or -> cancelled if that was requested. Raises as `succeed` does.

    The next sweep of any worker enqueues it at once, since `enqueued_at` is null.
    """
    row = transition(
        session,
        claim.job_id,
        has_token(claim),
        JobRow.cancel_requested_at.is_(None),
        old=JobStatus.RUNNING,
        new=JobStatus.QUEUED,
        values={
            **NO_PROGRESS,
            **NO_LEASE,
            "enqueued_at": None,
            "uncounted_attempts": JobRow.uncounted_attempts + (0 if counts else 1),
        },
        events=[(EventType.RELEASED, {"reason": storable(reason)})],
    )
    if row is None:
        requested = JobRow.cancel_requested_at.is_not(None)
        _finish(session, claim, JobStatus.CANCELLED, requested, values={}, event=(EventType.CANCELLED, {}))


def request_cancel(session: Session, job_id: str, *, owner: str | None) -> None:
    """Cancel a queued job; set the flag of a running one, for its worker. A second request changes nothing.

    Locks the job's row first, so that the status cannot change between the check and the write. Raises `JobNotFound`,
    or `StaleTransition` if the job has succeeded or failed.
    """
    row = lock_job(session, job_id, owner=owner)
    match row.status:
        case JobStatus.QUEUED:
            transition(
                session,
                job_id,
                old=JobStatus.QUEUED,
                new=JobStatus.CANCELLED,
                values={**finished(), "cancel_requested_at": now()},
                events=[(EventType.CANCEL_REQUESTED, {}), (EventType.CANCELLED, {})],
            )
        case JobStatus.RUNNING:
            update_job(
                session,
                job_id,
                JobRow.status == JobStatus.RUNNING,
                JobRow.cancel_requested_at.is_(None),
                values={"cancel_requested_at": now()},
                events=[(EventType.CANCEL_REQUESTED, {})],
            )
        case JobStatus.CANCELLED:
            pass
        case JobStatus.SUCCEEDED | JobStatus.FAILED:
            raise StaleTransition(f"job {job_id} has already {row.status} and cannot be cancelled")


def _finish(
    session: Session,
    claim: Claim,
    new: JobStatus,
    *where: ColumnElement[bool],
    values: Mapping[str, object],
    event: Event,
) -> None:
    row = transition(
        session,
        claim.job_id,
        has_token(claim),
        *where,
        old=JobStatus.RUNNING,
        new=new,
        values={**finished(), **values},
        events=[event],
    )
    if row is not None:
        return
    present = find_job(session, claim.job_id)
    if present.lease_token == claim.token and present.status in TERMINAL:
        raise StaleTransition(f"job {claim.job_id} is already {present.status}")
    raise lost(claim)
