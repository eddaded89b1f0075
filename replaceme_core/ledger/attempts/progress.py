"""What a worker records while its job is running: the resolved specification, progress and metrics."""

import math
from collections.abc import Sequence

from sqlalchemy import insert
from sqlalchemy.orm import Session

from replaceme_core.errors import NumericalFailure
from replaceme_core.hardware import worker_kind_of
from replaceme_core.ledger.attempts.leases import lock_claimed, update_claimed
from replaceme_core.ledger.clock import now
from replaceme_core.ledger.records import Claim
from replaceme_core.ledger.row_mapping import stored_spec
from replaceme_core.ledger.states import EventType
from replaceme_core.ledger.tables import MetricRow
from replaceme_core.request.spec import CompressionSpec
from replaceme_core.runner.messages import Measured, Stage


def record_spec(session: Session, claim: Claim, spec: CompressionSpec) -> None:
    """Store the specification with every default filled in; priority and limits stay. Raises `LeaseLost`.

    Once it names a device, only workers that have it can start another attempt.
    """
    worker_kind = worker_kind_of(spec.compute.device)
    values = {"spec": stored_spec(spec)}
    update_claimed(session, claim, values=values | ({} if worker_kind is None else {"worker_kind": worker_kind}))


def record_progress(
    session: Session,
    claim: Claim,
    *,
    stage: Stage,
    overall: float,
    fraction: float,
    eta_seconds: float | None,
    eta_error_seconds: float | None,
    resumed_from: Stage | None,
) -> None:
    """Store the progress, and an event if the stage is new. Raises `LeaseLost`.

    From the second attempt on, the event of `solve` names the stage whose result was resumed from, or null.
    """
    row = lock_claimed(session, claim)
    values = {
        "stage": stage,
        "overall": min(max(overall, 0.0), 1.0),
        "stage_fraction": min(max(fraction, 0.0), 1.0),
        "eta_seconds": _seconds(eta_seconds),
        "eta_error_seconds": _seconds(eta_error_seconds),
    }
    data: dict[str, object] = {"stage": stage.value}
    if stage is Stage.SOLVE and claim.attempt > 1:
        data["resumed_from"] = None if resumed_from is None else resumed_from.value
    update_claimed(session, claim, values=values, events=[] if row.stage is stage else [(EventType.STAGE, data)])


def _seconds(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else max(value, 0.0)


def add_metrics(session: Session, claim: Claim, measured: Sequence[Measured]) -> None:
    """Store all of `measured`, or nothing. Raises `LeaseLost`, or `NumericalFailure` if a value is not finite."""
    for value in measured:
        if not math.isfinite(value.value):
            raise NumericalFailure(f"the metric {value.name} of stage {value.stage} is {value.value}")
    lock_claimed(session, claim)
    if measured:
        session.execute(
            insert(MetricRow).values(job_id=claim.job_id, attempt=claim.attempt, at=now()),
            [value.model_dump(exclude={"type"}) for value in measured],
        )
