"""One job from claim to end, under a lease. What an attempt consists of is told in `attempt.py`.

The row is the truth, a message is a doorbell: whoever hears it takes the job whose turn it is, which need not be the
one the message names, and where there is none it does nothing. There is a message for each queued job, or the sweep
sends another, so the job it names is not left behind. When the lease is lost nothing more is written; every other end
of an attempt is written once, after its workspace is gone. No transaction is open while anything slow runs.
"""

import logging
import os
import socket
import time
from collections.abc import Callable

from replaceme_core.errors import (
    Cancelled,
    DatabaseUnreachable,
    LeaseLost,
    ReplaceMeError,
    StaleTransition,
)
from replaceme_core.eta import Course, stages_of
from replaceme_core.hub.port import Hub
from replaceme_core.jobs.records import Claim, Job
from replaceme_core.jobs.repository import Jobs
from replaceme_core.jobs.session import Database
from replaceme_core.settings import Settings
from worker.attempt import Attempt, Write
from worker.failure import describe
from worker.lease import Lease
from worker.recorder import Recorder
from worker.workspace import workspace

SETTLE_PAUSE_SECONDS = 1.0

logger = logging.getLogger(__name__)


class Supervisor:
    """Carries out jobs, one for each call of `run`. Safe to use from several threads."""

    def __init__(self, *, settings: Settings, database: Database, open_hub: Callable[[], Hub]) -> None:
        self._settings = settings
        self._database = database
        self._open_hub = open_hub

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
            return
        job, claim = found
        if job.id != job_id:
            logger.info("rung for job %s: it is the turn of job %s", job_id, job.id)
        job_id = job.id
        logger.info("job %s: attempt %s begins", job_id, claim.attempt)
        recorder = Recorder(self._database, claim, Course(stages=stages_of(job.spec), started=claimed_at))
        try:
            write = self._carry_out(job, claim, recorder, claimed_at=claimed_at)
        except LeaseLost as error:
            logger.error("job %s: attempt %s was given up: %s", job_id, claim.attempt, error)
            return
        except BaseException:  # SystemExit and the like: this worker is going down
            self._settle(claim, recorder, lambda jobs: jobs.release(claim, reason="the worker was shut down"))
            raise
        self._settle(claim, recorder, write)

    def _claim(self) -> tuple[Job, Claim] | None:
        with self._database.session() as session:
            jobs = Jobs(session)
            worker = f"{socket.gethostname()}:{os.getpid()}"
            claim = jobs.claim_next(worker=worker, lease_seconds=self._settings.lease_seconds)
            return None if claim is None else (jobs.get(claim.job_id), claim)

    def _carry_out(self, job: Job, claim: Claim, recorder: Recorder, *, claimed_at: float) -> Write:
        """Do the work; returns what there is to write at its end. Raises `LeaseLost` if it must not write anything."""
        lease = Lease(
            self._database,
            claim,
            lease_seconds=self._settings.lease_seconds,
            claimed_at=claimed_at,
            on_beat=recorder.flush,
        )
        try:
            with lease, workspace(self._settings.workspace, job_id=job.id, attempt=claim.attempt) as directory:
                return Attempt(
                    job, settings=self._settings, hub=self._open_hub(), lease=lease, recorder=recorder, place=directory
                ).carry_out()
        except LeaseLost:
            raise
        except Cancelled:
            return lambda jobs: jobs.finish_cancelled(claim)
        except Exception as error:
            if not isinstance(error, ReplaceMeError):
                logger.exception("job %s: attempt %s failed", job.id, claim.attempt)
            failed = describe(error)
            return lambda jobs: jobs.fail(claim, code=failed.code, message=failed.message)

    def _settle(self, claim: Claim, recorder: Recorder, write: Write) -> None:
        """Write the end of the attempt; tried again while the lease still holds and the database does not answer."""
        deadline = time.monotonic() + self._settings.lease_seconds / 2
        while True:
            try:
                recorder.flush(write)
            except DatabaseUnreachable as error:
                if time.monotonic() >= deadline:
                    logger.error("job %s: its end could not be written: %s", claim.job_id, error)
                    return
                time.sleep(min(SETTLE_PAUSE_SECONDS, self._settings.lease_seconds / 10))
            except (LeaseLost, StaleTransition) as error:
                logger.error("job %s: its end was not written: %s", claim.job_id, error)
                return
            else:
                logger.info("job %s: attempt %s is over", claim.job_id, claim.attempt)
                return
