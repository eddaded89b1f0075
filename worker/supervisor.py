"""One job from claim to end, under a lease. What an attempt consists of is told in `attempt.py`.

The row is the truth, a message is a doorbell: whoever hears it takes the job whose turn it is, which need not be the
one the message names, and where there is none, shards of a job that another worker carries out (`shard_visit.py`).
There is a message for each queued job, or the sweep sends another, so the job it names is not left behind. When the
lease is lost nothing more is written; every other end of an attempt is written once, after its workspace is gone. No
transaction is open while anything slow runs.
"""

import logging
import os
import socket
import time
from collections.abc import Callable, Sequence

from replaceme_core.admission.worker_kind import WorkerKind
from replaceme_core.errors import (
    Cancelled,
    DatabaseUnreachable,
    LeaseLost,
    QueueUnreachable,
    ReplaceMeError,
    StaleTransition,
)
from replaceme_core.hub.port import Hub
from replaceme_core.jobs.records import Claim, Job
from replaceme_core.jobs.repository import Jobs
from replaceme_core.jobs.session import Database
from replaceme_core.runner.eta import Course, weights_of
from replaceme_core.settings import Settings
from worker.attempt import Attempt, Write
from worker.failure import describe
from worker.lease import Lease, ShutDown
from worker.progress_writer import Recorder
from worker.shards.coordinator import ShardDesk
from worker.shards.helper import ShardVisits
from worker.workspace import forget_checkpoints, workspace

SETTLE_PAUSE_SECONDS = 1.0

logger = logging.getLogger(__name__)


class Supervisor:
    """Carries out jobs, one for each call of `run`. Safe to use from several threads.

    `routes` that it serves, all by default. `ring` calls another worker for a job that is given back, and `is_over`
    tells when to give it back because this worker is going down; from `takes_no_more` on it takes no further shard.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        database: Database,
        open_hub: Callable[[], Hub],
        worker_kinds: Sequence[WorkerKind] | None = None,
        enqueue: Callable[[str, WorkerKind | None], None] = lambda job_id, worker_kind: None,
        is_over: Callable[[], bool] = lambda: False,
        takes_no_more: Callable[[], bool] = lambda: False,
    ) -> None:
        self._worker = f"{socket.gethostname()}:{os.getpid()}"
        self._visits = ShardVisits(
            settings=settings,
            database=database,
            open_hub=open_hub,
            worker=self._worker,
            worker_kinds=worker_kinds,
            takes_no_more=takes_no_more,
            is_over=is_over,
        )
        self._settings = settings
        self._database = database
        self._open_hub = open_hub
        self._routes = worker_kinds
        self._enqueue = enqueue
        self._is_over = is_over

    def run(self, job_id: str) -> None:
        """Claim the job whose turn it is and see it through to its end. Raises nothing that the caller could act on.

        `job_id` is the one that the message was sent for, for the log.
        """
        claimed_at = time.monotonic()
        try:
            found = self._claim()
        except DatabaseUnreachable as error:
            logger.warning("rung for job %s, nothing was claimed, the sweep will ring again: %s", job_id, error)
            return
        if found is None:
            logger.info("rung for job %s: there is nothing to start", job_id)
            self._visits.visit()
            return
        job, claim = found
        if job.id != job_id:
            logger.info("rung for job %s: it is the turn of job %s", job_id, job.id)
        job_id = job.id
        logger.info("job %s: attempt %s begins", job_id, claim.attempt)
        recorder = Recorder(self._database, claim, Course(weights=weights_of(job.spec), started=claimed_at))
        try:
            write = self._carry_out(job, claim, recorder, claimed_at=claimed_at)
        except LeaseLost as error:
            logger.error("job %s: attempt %s was given up: %s", job_id, claim.attempt, error)
            return
        except ShutDown as error:
            self._give_back(claim, recorder, reason=str(error))
        except BaseException:  # SystemExit and the like: this worker is going down at once
            self._give_back(claim, recorder, reason="the worker was shut down")
            raise
        else:
            if self._settle(claim, recorder, write):
                self._forget(job_id)

    def _forget(self, job_id: str) -> None:
        """What attempts left to each other goes with the job; if it cannot be asked now, the sweep will."""
        try:
            with self._database.session(read_only=True) as session:
                is_over = Jobs(session).get(job_id).is_terminal
        except DatabaseUnreachable as error:
            logger.warning("job %s: its checkpoints are left to the sweep: %s", job_id, error)
        else:
            if is_over:
                forget_checkpoints(self._settings.workspace, job_id)

    def _give_back(self, claim: Claim, recorder: Recorder, *, reason: str) -> None:
        """And call another worker: the sweep would do so, but later."""
        if not self._settle(claim, recorder, lambda jobs: jobs.release(claim, reason=reason, counts=False)):
            return
        try:
            with self._database.session(read_only=True) as session:
                worker_kind = Jobs(session).get(claim.job_id).worker_kind
            self._enqueue(claim.job_id, worker_kind)
        except (DatabaseUnreachable, QueueUnreachable) as error:
            logger.warning("job %s was given back, the sweep will ring for it: %s", claim.job_id, error)

    def _claim(self) -> tuple[Job, Claim] | None:
        with self._database.session() as session:
            jobs = Jobs(session)
            claim = jobs.claim_next(
                worker=self._worker, lease_seconds=self._settings.lease_seconds, worker_kinds=self._routes
            )
            return None if claim is None else (jobs.get(claim.job_id), claim)

    def _carry_out(self, job: Job, claim: Claim, recorder: Recorder, *, claimed_at: float) -> Write:
        """Do the work; returns what there is to write at its end. Raises `LeaseLost` if it must not write anything."""
        lease = Lease(
            self._database,
            claim,
            lease_seconds=self._settings.lease_seconds,
            claimed_at=claimed_at,
            on_beat=recorder.flush,
            is_over=self._is_over,
        )
        try:
            with lease, workspace(self._settings.workspace, job_id=job.id, attempt=claim.attempt) as directory:
                desk = ShardDesk(self._database, claim, recorder=recorder, worker=self._worker, enqueue=self._enqueue)
                return Attempt(
                    job,
                    settings=self._settings,
                    hub=self._open_hub(),
                    lease=lease,
                    recorder=recorder,
                    desk=desk,
                    place=directory,
                ).carry_out()
        except (LeaseLost, ShutDown):
            raise
        except Cancelled:
            return lambda jobs: jobs.finish_cancelled(claim)
        except Exception as error:
            if not isinstance(error, ReplaceMeError):
                logger.exception("job %s: attempt %s failed", job.id, claim.attempt)
            failed = describe(error)
            return lambda jobs: jobs.fail(claim, code=failed.code, message=failed.message)

    def _settle(self, claim: Claim, recorder: Recorder, write: Write) -> bool:
        """Write the end of the attempt; tried again while the lease still holds and the database does not answer.

        False: it could not be written.
        """
        deadline = time.monotonic() + self._settings.lease_seconds / 2
        while True:
            try:
                recorder.flush(write)
            except DatabaseUnreachable as error:
                if time.monotonic() >= deadline:
                    logger.error("job %s: its end could not be written: %s", claim.job_id, error)
                    return False
                time.sleep(min(SETTLE_PAUSE_SECONDS, self._settings.lease_seconds / 10))
            except (LeaseLost, StaleTransition) as error:
                logger.error("job %s: its end was not written: %s", claim.job_id, error)
                return False
            else:
                logger.info("job %s: attempt %s is over", claim.job_id, claim.attempt)
                return True
