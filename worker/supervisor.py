"""One job from claim to end, under a lease. `attempt.py` has the steps of an attempt.

The database is the source of truth; a message only wakes a worker up. The worker that receives it claims the next job
in the queue, which need not be the one that the message names. There is a message for each queued job, or the sweep
sends another, so no job is left out. When the lease is lost nothing more is written. Every other end of an attempt is
written once, after its workspace has been removed. No transaction is open while anything slow runs.
"""

import logging
import math
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from opentelemetry.trace import SpanKind, get_current_span
from pydantic import ValidationError
from sqlalchemy.orm import Session

from replaceme_core import telemetry
from replaceme_core.errors import (
    Cancelled,
    DatabaseUnreachable,
    InvalidInput,
    LeaseLost,
    OutOfSpace,
    QueueUnreachable,
    ReplaceMeError,
    StaleTransition,
    Unavailable,
)
from replaceme_core.hardware import WorkerKind
from replaceme_core.hub.port import Hub
from replaceme_core.ledger import attempts, reading
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.keys import Owners, owner_hub
from replaceme_core.ledger.records import Claim, Job, JobEvent
from replaceme_core.ledger.states import EventType
from replaceme_core.ledger.sweep import pause_after
from replaceme_core.library_errors import require_space
from replaceme_core.plan.eta import Course, weights_of
from replaceme_core.request.admission import OutputRules
from replaceme_core.runner.messages import Failed, PastJob, Stage, describe, is_mistake
from replaceme_core.runner.process import RUNNER_COMMAND, UNCONFINED, Confinement, RunnerNeverBegan
from replaceme_core.settings import Settings
from replaceme_core.telemetry import OUTCOME, bound, mark_failed, origin
from worker.attempt import Attempt, Write
from worker.lease import Lease, ShutDown, retry_under_lease
from worker.progress_writer import ProgressWriter, redacted, secrets_of
from worker.workspace import locked_directory, remove_checkpoints

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
REST_SECONDS = 10.0
"""After a fault of this machine. Meanwhile other workers get the messages."""
LEAST_FREE_BYTES = 2**20
"""For no job at all. Not more: space for a model is made in the caches by the job itself."""
_BEFORE_RUNNER = (None, Stage.RESOLVE, Stage.DOWNLOAD, Stage.CALIBRATE)
"""Until the runner sends its first message, a fault of the file system is the machine's and not the job's."""


class UnfitMachine(Unavailable):
    """This machine cannot run any job, such as one without disk space."""


class CannotBegin(Exception):
    """A fault of this machine before the runner's first message. Another worker may run the job."""

    def __init__(self, failed: Failed) -> None:
        super().__init__(failed.message)
        self.failed = failed


@dataclass(frozen=True, kw_only=True)
class Supervisor:
    """Runs jobs, one for each call of `run`. Safe to use from several threads.

    `worker_kinds` are the kinds of jobs it serves; `None`: all. `enqueue` sends the wake-up message for a job that was
    released. `must_release` returns whether to release the running job because this worker is shutting down.
    """

    settings: Settings
    database: Database
    open_hub: Callable[[], Hub]
    confinement: Confinement = UNCONFINED
    worker_kinds: Sequence[WorkerKind] | None = None
    enqueue: Callable[[str, WorkerKind | None], None] = lambda job_id, worker_kind: None
    must_release: Callable[[], bool] = lambda: False

    def run(self, job_id: str | None) -> bool:
        """Claim the next job in the queue and run it to its end; whether to call this again at once.

        Errors of a job are logged and written to it, not raised.

        `job_id` is the job that the message was sent for; it is used for the log only. `None`: there was no message.

        Raises `Unavailable` where nothing could be claimed: `UnfitMachine` after a pause, and errors of the database.
        """
        why = "without a message" if job_id is None else f"message for job {job_id}"
        try:
            self._check_machine()
        except (OSError, OutOfSpace) as error:
            time.sleep(REST_SECONDS)
            raise UnfitMachine(f"this machine cannot run jobs: {error}") from error
        claimed_at = time.monotonic()
        found = self._claim()
        if found is None:
            logger.info("%s: no job can start", why)
            return False
        job, claim = found
        if job_id is not None and job.id != job_id:
            logger.info("%s: job %s comes first", why, job.id)
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
            if self._run(job, claim, claimed_at=claimed_at):
                return True
        time.sleep(REST_SECONDS)
        return False

    def _check_machine(self) -> None:
        """Raises `OSError` or `OutOfSpace` if no job could run here: each would fail that another worker could run."""
        workspace, program = self.settings.workspace, (self.settings.runner_command or RUNNER_COMMAND)[0]
        workspace.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workspace, buffering=0) as probe:
            probe.write(b"0")
        require_space(workspace, LEAST_FREE_BYTES, purpose="any job")
        if shutil.which(program) is None:
            raise FileNotFoundError(f"there is no program {program}, the runner")

    def _run(self, job: Job, claim: Claim, *, claimed_at: float) -> bool:
        """The attempt at a job that was claimed, to its end. False if the fault was this machine's."""
        job_id = job.id
        logger.info("job %s: attempt %s begins", job_id, claim.attempt)
        course = Course(weights=weights_of(job.spec), started=claimed_at)
        redact = partial(redacted, known=secrets_of(self.settings))
        progress = ProgressWriter(self.database, claim, course, redact=redact)
        try:
            with progress.spans:
                write = self._run_attempt(job, claim, progress, claimed_at=claimed_at)
        except LeaseLost as error:
            logger.error("job %s: attempt %s was abandoned: %s", job_id, claim.attempt, error)
        except ShutDown as error:
            self._release(claim, progress, reason=str(error))
        except CannotBegin as error:
            self._write_end(claim, progress, partial(self._postpone, claim=claim, failed=error.failed))
            return False
        except BaseException:  # SystemExit and the like: this worker ends at once
            self._release(claim, progress, reason="the worker was shut down")
            raise
        else:
            ended = self._write_end(claim, progress, write)
            if ended is not None and ended.is_terminal:  # what was for further attempts, of which there are none
                remove_checkpoints(self.settings.workspace, job_id)
        return True

    def _postpone(self, session: Session, *, claim: Claim, failed: Failed) -> None:
        """Release the job for another worker, after a pause: this one must not use up all attempts at once."""
        if claim.counted < self.settings.max_attempts:
            pause = pause_after(claim.counted, self.settings.sweep_seconds)
            reason = f"the worker could not begin: {failed.message}"
            attempts.release(session, claim, reason=reason, pause_seconds=pause)
        else:
            attempts.fail(session, claim, code=failed.code, message=failed.message)

    def _release(self, claim: Claim, progress: ProgressWriter, *, reason: str) -> None:
        """Put the job back into the queue and wake up another worker, which the sweep would do later."""
        write = partial(attempts.release, claim=claim, reason=reason, counts=False)
        released = self._write_end(claim, progress, write)
        if released is not None:
            try:
                self.enqueue(released.id, released.worker_kind)
            except QueueUnreachable as error:
                logger.warning("job %s was released; the next sweep sends its message: %s", released.id, error)

    def _claim(self) -> tuple[Job, Claim] | None:
        """The next job. One whose specification this release cannot read fails: it would stop all jobs behind it."""
        while True:
            with self.database.session() as session:
                claim = attempts.claim_next(
                    session,
                    worker=f"{socket.gethostname()}:{os.getpid()}",
                    lease_seconds=self.settings.lease_seconds,
                    worker_kinds=self.worker_kinds,
                )
                if claim is None:
                    return None
                try:
                    return attempts.job_of(session, claim), claim
                except ValidationError as error:
                    fields = ", ".join(".".join(map(str, one["loc"])) for one in error.errors(include_url=False))
                    message = f"this worker cannot read the specification, perhaps that of another release: {fields}"
                    attempts.fail(session, claim, code=InvalidInput.code, message=message)
            logger.error("job %s: %s", claim.job_id, message)

    def _run_attempt(self, job: Job, claim: Claim, progress: ProgressWriter, *, claimed_at: float) -> Write:
        """Do the work; returns the write that ends the attempt.

        Raises `LeaseLost` if nothing may be written, `ShutDown`, and `CannotBegin`.
        """
        lease = Lease(
            self.database,
            claim,
            lease_seconds=self.settings.lease_seconds,
            claimed_at=claimed_at,
            on_heartbeat=progress.flush,
            must_release=self.must_release,
            stage_seconds=self.settings.stage_seconds or math.inf,
        )
        try:
            place = locked_directory(self.settings.workspace, name=f"{job.id}-{claim.attempt}")
            with lease, place as directory:
                hub, rules = retry_under_lease(
                    lease, partial(self._hub_and_rules, job), seconds=self.settings.hub_patience_seconds
                )
                return Attempt(
                    job=job,
                    settings=self.settings,
                    confinement=self.confinement,
                    hub=hub,
                    open_writer=partial(self._hub_to_publish, job, hub),
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
            of_files = isinstance(error, OSError) or failed.code == OutOfSpace.code
            if isinstance(error, RunnerNeverBegan) or (lease.stage in _BEFORE_RUNNER and of_files):
                raise CannotBegin(failed) from error
            return lambda session: attempts.fail(session, claim, code=failed.code, message=failed.message)

    def _hub_and_rules(self, job: Job) -> tuple[Hub, OutputRules]:
        """The Hub with the credential that the job names, if any, and the rules for outputs of its owner.

        Raises as `owner_hub` does.
        """

        def has_made(job_id: str, repo_id: str) -> bool:
            if job_id == job.retry_of:  # its own job, even if that has been deleted since
                return True
            with self.database.session(read_only=True) as session:
                return reading.has_made(session, job_id, repo_id, owner=job.owner)

        hub = self._hub(job)
        with self.database.session(read_only=True) as session:
            namespaces = Owners(session).output_namespaces(job.owner)
        return hub, self.settings.output_rules(is_own=has_made, namespaces=namespaces)

    def _hub(self, job: Job) -> Hub:
        return owner_hub(
            job.owner,
            job.spec.credential,
            settings=self.settings,
            database=self.database,
            default=self.open_hub,
        )

    def _hub_to_publish(self, job: Job, hub: Hub) -> Hub:
        """`hub`, with which the job began; or one with the token that its credential has got since."""
        try:
            return hub if job.spec.credential is None else self._hub(job)
        except InvalidInput:  # the credential is deleted: that holds for jobs that have not begun
            return hub

    def _history(self, job: Job) -> Sequence[PastJob]:
        """What earlier jobs took on this kind of worker; empty where that is not known."""
        served = self.worker_kinds or ()
        kind = job.worker_kind or (served[0] if len(served) == 1 else None)
        if kind is None:
            return ()
        try:
            with self.database.session(read_only=True) as session:
                return reading.past_jobs(session, kind)
        except DatabaseUnreachable as error:
            logger.info("job %s: its time is expected without earlier jobs: %s", job.id, error)
            return ()

    def _write_end(self, claim: Claim, progress: ProgressWriter, write: Write) -> Job | None:
        """Write the end of the attempt. Retried for half a lease while the database cannot be reached.

        Returns the job as it is then, and `None` if the end could not be written.
        """
        deadline = time.monotonic() + self.settings.lease_seconds / 2
        ended: list[tuple[Job, JobEvent]] = []

        def write_and_read(session: Session) -> None:
            write(session)
            ended[:] = [(attempts.job_of(session, claim), attempts.history(session, claim)[-1])]

        while True:
            try:
                progress.flush(write_and_read)
            except DatabaseUnreachable as error:
                if time.monotonic() >= deadline:
                    logger.error("job %s: its end could not be written: %s", claim.job_id, error)
                    return None
                time.sleep(min(RETRY_PAUSE_SECONDS, self.settings.lease_seconds / 10))
            except (LeaseLost, StaleTransition) as error:
                logger.error("job %s: its end was not written: %s", claim.job_id, error)
                return None
            else:
                ((job, last),) = ended
                report_outcome(claim, last)
                return job
