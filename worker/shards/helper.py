"""Lets an idle worker compute shards of a job that another worker runs.

Jobs come first: before each further shard the helper checks whether a job could start. It never changes the job itself.
When something fails here, the shard waits again until the job's own worker or another one computes it.
"""

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from replaceme_core.errors import Cancelled, DatabaseUnreachable, LeaseLost
from replaceme_core.hardware import WorkerKind
from replaceme_core.hub.port import Hub
from replaceme_core.ledger.records import Job, ShardClaim
from replaceme_core.ledger.repository import Jobs
from replaceme_core.ledger.session import Database
from replaceme_core.runner import inputs
from replaceme_core.runner.confinement import Confinement
from replaceme_core.runner.failure import describe, is_mistake
from replaceme_core.runner.messages import Failed, ShardAnswer, ShardsEnded, ShardWanted, Stage
from replaceme_core.runner.process import SHARDS_FLAG, RunnerBroke
from replaceme_core.runner.requests import ShardRequest
from replaceme_core.settings import Settings
from worker import owner
from worker.hub_retry import retry_under_lease
from worker.lease import ShutDown
from worker.processes.leased_runner import leased_runner
from worker.shards.lease import ShardLease
from worker.workspace import has_plan, shards_of, workspace

PAUSE_SECONDS = 0.5

logger = logging.getLogger(__name__)


class ShardHelper:
    """Computes shards in one process.

    `is_draining` returns whether this worker is shutting down and takes no further shard, `must_release` whether it has
    to release its shard now. `worker_kinds` are the kinds of jobs it serves; `None`: all.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        confinement: Confinement,
        database: Database,
        open_hub: Callable[[], Hub],
        worker: str,
        worker_kinds: Sequence[WorkerKind] | None,
        is_draining: Callable[[], bool],
        must_release: Callable[[], bool],
    ) -> None:
        self._settings = settings
        self._confinement = confinement
        self._database = database
        self._open_hub = open_hub
        self._worker = worker
        self._worker_kinds = worker_kinds
        self._is_draining = is_draining
        self._must_release = must_release
        self._declined: set[str] = set()
        """Plans of which a shard has failed here."""

    def run(self) -> None:
        """Compute shards of one job, if there are any whose files this worker sees. Errors are logged, not raised."""
        claimed_at = time.monotonic()
        try:
            claimed = self._claim()
        except DatabaseUnreachable as error:
            logger.warning("no shard was claimed, the next sweep sends another wake-up message: %s", error)
            return
        if claimed is None:
            return
        job, claim = claimed
        logger.info("job %s: computing shard %s", job.id, claim.number)
        lease = ShardLease(
            self._database,
            claim,
            lease_seconds=self._settings.lease_seconds,
            claimed_at=claimed_at,
            must_release=self._must_release,
            stage_seconds=self._settings.resolved_stage_seconds,
        )
        try:
            with lease, workspace(self._settings.workspace, job_id=job.id, attempt=job.attempt) as place:
                self._compute(job, claim, lease, place)
        except (LeaseLost, Cancelled) as error:
            logger.warning("job %s: stopped computing its shards: %s", job.id, error)
        except ShutDown as error:
            self._release(claim, reason=str(error), counts=False)
        except Exception as error:
            self._declined.add(claim.plan)
            failed = describe(error)
            logger.warning("job %s: a shard failed: %s", job.id, failed.message, exc_info=is_mistake(failed))
            self._release(claim, reason=failed.message)
        except BaseException:  # SystemExit and the like
            self._release(claim, reason="the worker was shut down", counts=False)
            raise

    def _claim(self) -> tuple[Job, ShardClaim] | None:
        max_attempts = self._settings.max_attempts
        with self._database.session(read_only=True) as session:
            plans = Jobs(session).shards.open_plans(max_attempts=max_attempts, worker_kinds=self._worker_kinds)
        for plan in plans:
            if plan.plan in self._declined or not has_plan(self._settings.workspace, plan.job_id, plan.plan):
                continue
            with self._database.session() as session:
                claim = Jobs(session).shards.claim(
                    plan, worker=self._worker, lease_seconds=self._settings.lease_seconds, max_attempts=max_attempts
                )
                if claim is not None:
                    return Jobs(session).get(plan.job_id), claim
        return None

    def _compute(self, job: Job, claim: ShardClaim, lease: ShardLease, place: Path) -> None:
        """Raises what `lease.check` raises, and any error of the download and the runner."""
        lease.begin_stage(Stage.DOWNLOAD)
        retry = partial(retry_under_lease, lease, seconds=self._settings.hub_patience_seconds)
        hub = owner.open_hub_of(job, settings=self._settings, database=self._database, default=self._open_hub)
        pinned = retry(lambda: inputs.resolve_model(job.spec, hub))
        with inputs.held(pinned.files, lambda: hub):
            local = retry(lambda: inputs.download(pinned, hub, advance=lambda _: lease.check()))
            self._run(job, claim, lease, place, local)

    def _run(self, job: Job, claim: ShardClaim, lease: ShardLease, place: Path, local: inputs.LocalInputs) -> None:
        request = ShardRequest(
            spec=job.spec.without_credential(),
            model_directory=str(local.model_directory),
            shard_directory=str(shards_of(self._settings.workspace, job.id)),
            plan=claim.plan,
            job_id=job.id,
        )
        lease.begin_stage(Stage.CALIBRATE)
        with leased_runner(
            request,
            lease=lease,
            settings=self._settings,
            confinement=self._confinement,
            scratch=place / "scratch",
            flags=[SHARDS_FLAG],
        ) as runner:
            for message in runner.messages():
                match message:
                    case ShardWanted():
                        lease.begin_stage(Stage.CALIBRATE)  # each shard has the time of a stage
                        runner.answer(self._answer(message, claim, lease))
                    case ShardsEnded():
                        return
                    case Failed():
                        lease.check()
                        raise RunnerBroke(message.message)
                    case _:
                        pass

    def _answer(self, message: ShardWanted, first: ShardClaim, lease: ShardLease) -> ShardAnswer:
        """The shard that was claimed before the runner started, and later the next one, if any."""
        if message.finished is None:
            return ShardAnswer(number=first.number, done=0, count=1)
        while True:
            lease.check()
            try:
                following = lease.finish_and_take(self._take_next)
            except DatabaseUnreachable as error:
                logger.warning("job %s: a finished shard could not be written, retrying: %s", first.job_id, error)
                lease.ended.wait(PAUSE_SECONDS)
            else:
                return ShardAnswer(number=None if following is None else following.number, done=0, count=1)

    def _take_next(self, jobs: Jobs, claim: ShardClaim) -> ShardClaim | None:
        if self._is_draining() or jobs.has_startable_job(worker_kinds=self._worker_kinds):
            return None
        return jobs.shards.claim_next(
            claim,
            worker=self._worker,
            lease_seconds=self._settings.lease_seconds,
            max_attempts=self._settings.max_attempts,
        )

    def _release(self, claim: ShardClaim, *, reason: str, counts: bool = True) -> None:
        try:
            with self._database.session() as session:
                Jobs(session).shards.release(claim, reason=reason, counts=counts)
        except DatabaseUnreachable as error:
            logger.warning("job %s: a shard could not be released, its lease will expire: %s", claim.job_id, error)
