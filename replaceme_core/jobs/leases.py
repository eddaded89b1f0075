"""Holding a job: claim, renew, report, finish. Every write is conditional on the token of the claim.

A token is fresh for each claim, so a worker that was thought lost cannot write over its successor. Times are the
database's, since the clocks of two workers may differ.
"""

import math
from collections.abc import Mapping, Sequence
from uuid import uuid4

from sqlalchemy import ColumnElement, case, func, insert, select

from replaceme_core.admission.worker_kind import WorkerKind, worker_kind_of
from replaceme_core.errors import LeaseLost, NumericalFailure, StaleTransition
from replaceme_core.jobs.clock import now
from replaceme_core.jobs.reading import stored_spec
from replaceme_core.jobs.records import Claim
from replaceme_core.jobs.scheduling.next_job import take_turn
from replaceme_core.jobs.session import LedgerSession
from replaceme_core.jobs.states import TERMINAL, EventType, JobStatus
from replaceme_core.jobs.tables import JobRow, MetricRow
from replaceme_core.jobs.transitions import Event, change, find, move
from replaceme_core.runner.messages import Measured, Stage
from replaceme_core.spec import CompressionSpec

MESSAGE_LENGTH = 4000

NO_PROGRESS: Mapping[str, object] = {"stage": None, "overall": 0.0, "stage_fraction": 0.0, "eta_seconds": None}
NO_LEASE: Mapping[str, object] = {"lease_token": None, "lease_expires_at": None, "worker": None}


def finished() -> dict[str, object]:
    """What every terminal status sets. The token stays where the holder finishes the job itself."""
    return {"finished_at": now(), "lease_expires_at": None, "eta_seconds": None}


def _token_is(claim: Claim) -> ColumnElement[bool]:
    return JobRow.lease_token == claim.token


def _held(claim: Claim) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return JobRow.status == JobStatus.RUNNING, _token_is(claim)


def _lost(claim: Claim) -> LeaseLost:
    return LeaseLost(f"attempt {claim.attempt} no longer holds job {claim.job_id}")


def hold(session: LedgerSession, claim: Claim) -> JobRow:
    """The row, locked: nobody takes the job back before this transaction ends. Raises `LeaseLost`."""
    row = session.scalars(
        select(JobRow).where(JobRow.id == claim.job_id, *_held(claim)).with_for_update(key_share=True),
        execution_options={"populate_existing": True},
    ).one_or_none()
    if row is None:
        raise _lost(claim)
    return row


def storable(text: str) -> str:
    """PostgreSQL refuses NUL, and no database takes half a surrogate pair; messages may quote broken input."""
    return text.replace("\0", "").encode(errors="replace").decode()[:MESSAGE_LENGTH]


class Leases:
    """The part of `Jobs` that workers use."""

    def __init__(self, session: LedgerSession) -> None:
        self._session = session

    def claim_next(
        self, *, worker: str, lease_seconds: float, worker_kinds: Sequence[WorkerKind] | None = None
    ) -> Claim | None:
        """queued -> running for the job whose turn it is, attempt + 1. `None`: there is nothing to start.

        `worker` is for people to read; what counts is the token. `routes` that the worker serves, beside jobs that
        are for any worker; all by default.
        """
        row = take_turn(self._session, worker_kinds=worker_kinds)
        return None if row is None else self._claim(row, worker=worker, lease_seconds=lease_seconds)

    def claim(self, job_id: str, *, worker: str, lease_seconds: float) -> Claim:
        """The same for this very job, out of turn.

        Raises `JobNotFound`, or `StaleTransition` if it is not queued (any more).
        """
        claim = self._claim(find(self._session, job_id), worker=worker, lease_seconds=lease_seconds)
        if claim is None:
            raise StaleTransition(f"job {job_id} is {find(self._session, job_id).status}, not queued")
        return claim

    def _claim(self, found: JobRow, *, worker: str, lease_seconds: float) -> Claim | None:
        token, limit = uuid4().hex, found.max_runtime_seconds
        deadline = None if limit is None else now(plus_seconds=limit)
        row = move(
            self._session,
            found.id,
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
            seconds_left = (row.deadline_at - self._session.scalars(select(now())).one()).total_seconds()
        return Claim(
            job_id=row.id,
            token=token,
            attempt=row.attempt,
            seconds_left=seconds_left,
            uncounted_attempts=row.uncounted_attempts,
        )

    def renew(self, claim: Claim, *, lease_seconds: float) -> bool:
        """Extend the lease. True: cancel was requested. Raises `LeaseLost` if the job was taken back."""
        values = {"lease_expires_at": now(plus_seconds=lease_seconds)}
        return self._write(claim, values=values).cancel_requested_at is not None

    def assert_held(self, claim: Claim) -> None:
        """Raises `LeaseLost` if the token is old or the lease has run out: another worker may hold the job by now."""
        query = select(JobRow.id).where(JobRow.id == claim.job_id, *_held(claim), JobRow.lease_expires_at > now())
        if self._session.scalars(query).one_or_none() is None:
            raise _lost(claim)

    def record_spec(self, claim: Claim, spec: CompressionSpec) -> None:
        """The specification with every default filled in; priority and limits stay. Raises `LeaseLost`.

        Once it names a device, only workers that have it can take the job up again.
        """
        worker_kind = worker_kind_of(spec.compute.device)
        values = {"spec": stored_spec(spec), "shards": spec.compute.shards}
        self._write(claim, values=values | ({} if worker_kind is None else {"worker_kind": worker_kind}))

    def record_progress(
        self,
        claim: Claim,
        *,
        stage: Stage,
        overall: float,
        fraction: float,
        eta_seconds: float | None,
        resumed_from: Stage | None = None,
    ) -> None:
        """`overall` and `fraction` (of the stage) run from 0 to 1. A new stage writes an event. Raises `LeaseLost`.

        From the second attempt on the event of `solve` tells what was taken over from an earlier one, or null.
        """
        row = hold(self._session, claim)
        values = {
            "stage": stage,
            "overall": min(max(overall, 0.0), 1.0),
            "stage_fraction": min(max(fraction, 0.0), 1.0),
            "eta_seconds": None if eta_seconds is None or not math.isfinite(eta_seconds) else max(eta_seconds, 0.0),
        }
        data: dict[str, object] = {"stage": stage.value}
        if stage is Stage.SOLVE and claim.attempt > 1:
            data["resumed_from"] = None if resumed_from is None else resumed_from.value
        self._write(claim, values=values, events=[] if row.stage is stage else [(EventType.STAGE, data)])

    def add_metrics(self, claim: Claim, measured: Sequence[Measured]) -> None:
        """Raises `LeaseLost`, or `NumericalFailure` for a value that is not finite; then none is written."""
        for value in measured:
            if not math.isfinite(value.value):
                raise NumericalFailure(f"the metric {value.name} of stage {value.stage} is {value.value}")
        hold(self._session, claim)
        if measured:
            self._session.execute(
                insert(MetricRow).values(job_id=claim.job_id, attempt=claim.attempt, at=now()),
                [value.model_dump(exclude={"type"}) for value in measured],
            )

    def succeed(
        self,
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
        }
        self._finish(
            claim,
            JobStatus.SUCCEEDED,
            values={"result": result, "report": dict(report), "overall": 1.0, "stage_fraction": 1.0},
            event=(EventType.SUCCEEDED, {"repo_id": repo_id, "revision": revision}),
        )

    def fail(self, claim: Claim, *, code: str, message: str) -> None:
        """running -> failed. `code` is one of `replaceme_core.errors`. Raises as `succeed` does."""
        error = {"code": code, "message": storable(message)}
        self._finish(
            claim,
            JobStatus.FAILED,
            values={"error_code": code, "error_message": error["message"]},
            event=(EventType.FAILED, error),
        )

    def finish_cancelled(self, claim: Claim) -> None:
        """running -> cancelled. Raises as `succeed` does."""
        self._finish(claim, JobStatus.CANCELLED, values={}, event=(EventType.CANCELLED, {}))

    def release(self, claim: Claim, *, reason: str, counts: bool = True) -> None:
        """Give the job back: running -> queued, or -> cancelled if that was requested. Raises as `succeed` does.

        `counts`: whether this was one of the attempts that the job has. Not so where its worker is shut down.
        """
        row = move(
            self._session,
            claim.job_id,
            _token_is(claim),
            JobRow.cancel_requested_at.is_(None),
            old=JobStatus.RUNNING,
            new=JobStatus.QUEUED,
            # never rung since: the next sweep, anywhere, announces it
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
            self._finish(claim, JobStatus.CANCELLED, requested, values={}, event=(EventType.CANCELLED, {}))

    def _write(self, claim: Claim, *, values: Mapping[str, object], events: Sequence[Event] = ()) -> JobRow:
        row = change(self._session, claim.job_id, *_held(claim), values=values, events=events)
        if row is None:
            raise _lost(claim)
        return row

    def _finish(
        self,
        claim: Claim,
        new: JobStatus,
        *where: ColumnElement[bool],
        values: Mapping[str, object],
        event: Event,
    ) -> None:
        row = move(
            self._session,
            claim.job_id,
            _token_is(claim),
            *where,
            old=JobStatus.RUNNING,
            new=new,
            values={**finished(), **values},
            events=[event],
        )
        if row is not None:
            return
        left = find(self._session, claim.job_id)
        if left.lease_token == claim.token and left.status in TERMINAL:
            raise StaleTransition(f"job {claim.job_id} is {left.status} already")
        raise _lost(claim)
