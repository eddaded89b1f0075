"""One job from claim to end, under a lease. `attempt.py` has the steps of an attempt.

The database is the source of truth; a message only wakes a worker up. The worker that receives it claims the next job
in the queue, which need not be the one that the message names. There is a message for each queued job, or the sweep
sends another, so no job is left out. When the lease is lost nothing more is written. Every other end of an attempt is
written once, after its workspace has been removed. No transaction is open while anything slow runs.
"""

import logging
import os
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial

from opentelemetry.trace import SpanKind, get_current_span
from sqlalchemy.orm import Session

from replaceme_core import telemetry
from replaceme_core.errors import (
    Cancelled,
    DatabaseUnreachable,
    LeaseLost,
    QueueUnreachable,
    ReplaceMeError,
    StaleTransition,
)
from replaceme_core.hardware import WorkerKind
from replaceme_core.hub.port import Hub
from replaceme_core.ledger import attempts, reading
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.keys import Owners, owner_hub
from replaceme_core.ledger.records import Claim, Job, JobEvent
from replaceme_core.ledger.states import EventType, JobStatus
from replaceme_core.plan.eta import Course, weights_of
from replaceme_core.request.admission import OutputRules
from replaceme_core.runner.messages import PastJob, describe, is_mistake
from replaceme_core.runner.process import UNCONFINED, Confinement
from replaceme_core.settings import Settings
from replaceme_core.telemetry import OUTCOME, bound, mark_failed, origin
from worker.attempt import Attempt, Write
from worker.lease import Lease, ShutDown, retry_under_lease
from worker.progress_writer import ProgressWriter, Redaction, StageSpans
from worker.workspace import remove_all_but_result, remove_checkpoints, workspace

_SHOWN = ("code", "message", "reason", "repo_id", "revision")

logger = logging.getLogger(__name__)


def report_outcome(claim: Claim, last: JobEvent) -> None:
    """Report the event that ended the attempt: a failure is an error, a job that is queued again a warning."""
    level = {EventType.FAILED: logging.ERROR, EventType.RELEASED: logging.WARNING}.get(last.type, logging.INFO)
    span = get_current_span()
    span.set_attribute(OUTCOME, last.type.value)
    if last.type is EventType.FAILED:
        mark_failed(span, str(last.data.get("code", last.type)))
    found = {name: last.data[name] for name in _SHOWN if name in last.data}
    why = found.get("message") or found.get("reason")
    logger.log(
        level,
        "job %s: attempt %s has ended: %s%s",
        claim.job_id,
        claim.attempt,
        last.type,
        "" if why is None else f", {found['code']}: {why}" if "code" in found else f", {why}",
        extra={"outcome": last.type.value, **{name: value for name, value in found.items() if name != "message"}},
    )


RETRY_PAUSE_SECONDS = 1.0


class Supervisor:
    """Runs jobs, one for each call of `run`. Safe to use from several threads.

    `worker_kinds` are the kinds of jobs it serves; `None`: all. `enqueue` sends the wake-up message for a job that was
    released. `must_release` returns whether to release the running job because this worker is shutting down.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        database: Database,
        open_hub: Callable[[], Hub],
        confinement: Confinement = UNCONFINED,
        worker_kinds: Sequence[WorkerKind] | None = None,
        enqueue: Callable[[str, WorkerKind | None], None] = lambda job_id, worker_kind: None,
        must_release: Callable[[], bool] = lambda: False,
    ) -> None:
        self._worker = f"{socket.gethostname()}:{os.getpid()}"
        self._settings = settings
        self._confinement = confinement
        self._database = database
        self._open_hub = open_hub
        self._worker_kinds = worker_kinds
        self._enqueue = enqueue
        self._must_release = must_release

    def run(self, job_id: str) -> None:
        """Claim the next job in the queue and run it to its end. Errors are logged and written to the job, not raised.

        `job_id` is the job that the message was sent for; it is used for the log only.
        """
        claimed_at = time.monotonic()
        try:
            found = self._claim()
        except DatabaseUnreachable as error:
            logger.warning("message for job %s: nothing was claimed, the next sweep sends another: %s", job_id, error)
            return
        if found is None:
            logger.info("message for job %s: no job can start", job_id)
            return
        job, claim = found
        if job.id != job_id:
            logger.info("message for job %s: job %s comes first", job_id, job.id)
        message = origin().traceparent  # that of a sweep has none, and that of another job another one
        with (
            bound(claim.origin, job_id=job.id, attempt=claim.attempt),
            telemetry.span(
                "attempt",
                kind=SpanKind.CONSUMER,
                link=message,
                attributes={telemetry.JOB_ID: job.id, telemetry.ATTEMPT: claim.attempt},
            ),
        ):
            self._run(job, claim, claimed_at=claimed_at)

    def _run(self, job: Job, claim: Claim, *, claimed_at: float) -> None:
        """The attempt at a job that was claimed, to its end."""
        job_id = job.id
        logger.info("job %s: attempt %s begins", job_id, claim.attempt)
        course = Course(weights=weights_of(job.spec), started=claimed_at)
        stages = StageSpans()
        redact = Redaction(self._settings)
        progress = ProgressWriter(self._database, claim, course, redact=redact, on_stage=stages.begin)
        try:
            with stages:
                write = self._run_attempt(job, claim, progress, claimed_at=claimed_at)
        except LeaseLost as error:
            logger.error("job %s: attempt %s was abandoned: %s", job_id, claim.attempt, error)
            return
        except ShutDown as error:
            self._release(claim, progress, reason=str(error))
        except BaseException:  # SystemExit and the like: this worker ends at once
            self._release(claim, progress, reason="the worker was shut down")
            raise
        else:
            if self._write_end(claim, progress, write):
                self._remove_leftovers(claim)

    def _remove_leftovers(self, claim: Claim) -> None:
        """Remove what was for further attempts, if there are none; the result of a failed job stays for some time.

        Where the database cannot be reached, the next sweep does it.
        """
        try:
            with self._database.session(read_only=True) as session:
                job = attempts.job_of(session, claim)
        except DatabaseUnreachable as error:
            logger.warning("job %s: its checkpoints are left to the next sweep: %s", claim.job_id, error)
            return
        if job.status is JobStatus.FAILED:
            remove_all_but_result(self._settings.workspace, claim.job_id)
        elif job.is_terminal:
            remove_checkpoints(self._settings.workspace, claim.job_id)

    def _release(self, claim: Claim, progress: ProgressWriter, *, reason: str) -> None:
        """Put the job back into the queue and wake up another worker, which the sweep would do later."""
        if not self._write_end(
            claim, progress, lambda session: attempts.release(session, claim, reason=reason, counts=False)
        ):
            return
        try:
            with self._database.session(read_only=True) as session:
                worker_kind = attempts.job_of(session, claim).worker_kind
            self._enqueue(claim.job_id, worker_kind)
        except (DatabaseUnreachable, QueueUnreachable) as error:
            logger.warning("job %s was released; no message was sent, the next sweep sends it: %s", claim.job_id, error)

    def _claim(self) -> tuple[Job, Claim] | None:
        with self._database.session() as session:
            claim = attempts.claim_next(
                session,
                worker=self._worker,
                lease_seconds=self._settings.lease_seconds,
                worker_kinds=self._worker_kinds,
            )
            return None if claim is None else (attempts.job_of(session, claim), claim)

    def _run_attempt(self, job: Job, claim: Claim, progress: ProgressWriter, *, claimed_at: float) -> Write:
        """Do the work; returns the write that ends the attempt. Raises `LeaseLost` if nothing may be written."""
        lease = Lease(
            self._database,
            claim,
            lease_seconds=self._settings.lease_seconds,
            claimed_at=claimed_at,
            on_heartbeat=progress.flush,
            must_release=self._must_release,
            stage_seconds=self._settings.resolved_stage_seconds,
        )
        try:
            with lease, workspace(self._settings.workspace, job_id=job.id, attempt=claim.attempt) as directory:
                hub, rules = retry_under_lease(
                    lease,
                    partial(self._hub_and_rules, job),
                    seconds=self._settings.hub_patience_seconds,
                    retry_on=(DatabaseUnreachable,),
                )
                return Attempt(
                    job,
                    settings=self._settings,
                    confinement=self._confinement,
                    hub=hub,
                    lease=lease,
                    progress=progress,
                    directory=directory,
                    rules=rules,
                    history=self._history(job),
                ).run()
        except (LeaseLost, ShutDown):
            raise
        except Cancelled:
            return lambda session: attempts.finish_cancelled(session, claim)
        except Exception as error:
            failed = describe(error)
            why = error.explained if isinstance(error, ReplaceMeError) else f"{failed.message} ({error})"
            logger.warning("job %s: attempt %s failed: %s", job.id, claim.attempt, why, exc_info=is_mistake(failed))
            return lambda session: attempts.fail(session, claim, code=failed.code, message=failed.message)

    def _hub_and_rules(self, job: Job) -> tuple[Hub, OutputRules]:
        """The Hub with the credential that the job names, if any, and the rules for outputs of its owner.

        Raises as `owner_hub` does.
        """

        def has_made(job_id: str, repo_id: str) -> bool:
            if job_id == job.retry_of:  # its own job, even if that has been deleted since
                return True
            with self._database.session(read_only=True) as session:
                return reading.has_made(session, job_id, repo_id, owner=job.owner)

        hub = owner_hub(
            job.owner,
            job.spec.credential,
            settings=self._settings,
            database=self._database,
            default=self._open_hub,
        )
        with self._database.session(read_only=True) as session:
            namespaces = Owners(session).output_namespaces(job.owner)
        return hub, self._settings.output_rules(is_own=has_made, namespaces=namespaces)

    def _history(self, job: Job) -> Sequence[PastJob]:
        """What earlier jobs took on this kind of worker; empty where that is not known."""
        served = self._worker_kinds or ()
        kind = job.worker_kind or (served[0] if len(served) == 1 else None)
        if kind is None:
            return ()
        try:
            with self._database.session(read_only=True) as session:
                return reading.past_jobs(session, kind)
        except DatabaseUnreachable as error:
            logger.info("job %s: its time is expected without earlier jobs: %s", job.id, error)
            return ()

    def _write_end(self, claim: Claim, progress: ProgressWriter, write: Write) -> bool:
        """Write the end of the attempt. Retried for half a lease while the database cannot be reached.

        Returns false if it could not be written.
        """
        deadline = time.monotonic() + self._settings.lease_seconds / 2
        last: JobEvent | None = None

        def write_and_read(session: Session) -> None:
            nonlocal last
            write(session)
            *_, last = attempts.history(session, claim)

        while True:
            try:
                progress.flush(write_and_read)
            except DatabaseUnreachable as error:
                if time.monotonic() >= deadline:
                    logger.error("job %s: its end could not be written: %s", claim.job_id, error)
                    return False
                time.sleep(min(RETRY_PAUSE_SECONDS, self._settings.lease_seconds / 10))
            except (LeaseLost, StaleTransition) as error:
                logger.error("job %s: its end was not written: %s", claim.job_id, error)
                return False
            else:
                assert last is not None
                report_outcome(claim, last)
                return True
