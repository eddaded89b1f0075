"""A worker with nothing else to do computes shards of a job that another worker carries out.

Jobs come first: before each shard it looks whether one could start. It never decides anything about the job. Whatever
goes wrong here is a shard that waits again, which the job's own worker or a third one computes.
"""

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from replaceme_core.admission.worker_kind import WorkerKind
from replaceme_core.errors import Cancelled, DatabaseUnreachable, LeaseLost
from replaceme_core.hub.port import Hub
from replaceme_core.jobs.records import Job, ShardClaim
from replaceme_core.jobs.repository import Jobs
from replaceme_core.jobs.session import Database
from replaceme_core.runner.messages import Failed, ShardAnswer, ShardRequest, ShardsEnded, ShardWanted
from replaceme_core.runner.process import SHARDS_FLAG, RunnerBroke
from replaceme_core.settings import Settings
from worker import sources
from worker.failure import describe
from worker.hub_retry import patiently
from worker.lease import ShutDown
from worker.processes.leased_runner import running
from worker.shards.lease import ShardLease
from worker.workspace import sees_plan, shards_of, workspace

PAUSE_SECONDS = 0.5

logger = logging.getLogger(__name__)


class ShardVisits:
    """Of one process. `takes_no_more` tells that this worker is going down, `is_over` that it must let go now."""

    def __init__(
        self,
        *,
        settings: Settings,
        database: Database,
        open_hub: Callable[[], Hub],
        worker: str,
        worker_kinds: Sequence[WorkerKind] | None,
        takes_no_more: Callable[[], bool],
        is_over: Callable[[], bool],
    ) -> None:
        self._settings = settings
        self._database = database
        self._open_hub = open_hub
        self._worker = worker
        self._routes = worker_kinds
        self._takes_no_more = takes_no_more
        self._is_over = is_over
        self._declined: set[str] = set()
        """Plans that went wrong here once."""

    def visit(self) -> None:
        """Compute shards of one job, if there are some and this worker sees its files. Raises nothing to act on."""
        claimed_at = time.monotonic()
        try:
            claimed = self._claim()
        except DatabaseUnreachable as error:
            logger.warning("no shard was claimed, the sweep will ring again: %s", error)
            return
        if claimed is None:
            return
        job, claim = claimed
        logger.info("job %s: shard %s is computed here", job.id, claim.number)
        lease = ShardLease(
            self._database,
            claim,
            lease_seconds=self._settings.lease_seconds,
            claimed_at=claimed_at,
            is_over=self._is_over,
        )
        try:
            with lease, workspace(self._settings.workspace, job_id=job.id, attempt=job.attempt) as place:
                self._compute(job, claim, lease, place)
        except (LeaseLost, Cancelled) as error:
            logger.warning("job %s: its shards are left: %s", job.id, error)
        except ShutDown as error:
            self._give_back(claim, reason=str(error), counts=False)
        except Exception as error:
            self._declined.add(claim.plan)
            failed = describe(error)
            logger.exception("job %s: a shard went wrong: %s", job.id, failed.message)
            self._give_back(claim, reason=failed.message)
        except BaseException:  # SystemExit and the like
            self._give_back(claim, reason="the worker was shut down", counts=False)
            raise

    def _claim(self) -> tuple[Job, ShardClaim] | None:
        most = self._settings.max_attempts
        with self._database.session(read_only=True) as session:
            plans = Jobs(session).shards.open_plans(max_attempts=most, worker_kinds=self._routes)
        for plan in plans:
            if plan.plan in self._declined or not sees_plan(self._settings.workspace, plan.job_id, plan.plan):
                continue
            with self._database.session() as session:
                claim = Jobs(session).shards.claim(
                    plan, worker=self._worker, lease_seconds=self._settings.lease_seconds, max_attempts=most
                )
                if claim is not None:
                    return Jobs(session).get(plan.job_id), claim
        return None

    def _compute(self, job: Job, claim: ShardClaim, lease: ShardLease, place: Path) -> None:
        """Raises what `lease.check` does, and what goes wrong."""
        hub = self._open_hub()
        hurry = partial(patiently, lease, seconds=self._settings.hub_patience_seconds)
        wanted = hurry(lambda: sources.resolve_model(job.spec, hub))
        local = hurry(lambda: sources.fetch(wanted, hub, advance=lambda _: lease.check()))
        request = ShardRequest(
            spec=job.spec,
            model_directory=str(local.model_directory),
            shard_directory=str(shards_of(self._settings.workspace, job.id)),
            plan=claim.plan,
            job_id=job.id,
        )
        with running(
            request, lease=lease, settings=self._settings, scratch=place / "scratch", flags=[SHARDS_FLAG]
        ) as runner:
            for message in runner.messages():
                match message:
                    case ShardWanted():
                        runner.answer(self._answer(message, claim, lease))
                    case ShardsEnded():
                        return
                    case Failed():
                        lease.check()
                        raise RunnerBroke(message.message)
                    case _:
                        pass

    def _answer(self, message: ShardWanted, first: ShardClaim, lease: ShardLease) -> ShardAnswer:
        """The shard that was claimed before the runner began, and others once that is done."""
        if message.finished is None:
            return ShardAnswer(number=first.number, done=0, count=1)
        while True:
            lease.check()
            try:
                following = lease.pass_on(self._take_next)
            except DatabaseUnreachable as error:
                logger.warning("job %s: a shard is not told of for now: %s", first.job_id, error)
                lease.ended.wait(PAUSE_SECONDS)
            else:
                return ShardAnswer(number=None if following is None else following.number, done=0, count=1)

    def _take_next(self, jobs: Jobs, claim: ShardClaim) -> ShardClaim | None:
        if self._takes_no_more() or jobs.has_startable_job(worker_kinds=self._routes):
            return None
        return jobs.shards.claim_next(
            claim,
            worker=self._worker,
            lease_seconds=self._settings.lease_seconds,
            max_attempts=self._settings.max_attempts,
        )

    def _give_back(self, claim: ShardClaim, *, reason: str, counts: bool = True) -> None:
        try:
            with self._database.session() as session:
                Jobs(session).shards.release(claim, reason=reason, counts=counts)
        except DatabaseUnreachable as error:
            logger.warning("job %s: a shard is taken back when its lease has run out: %s", claim.job_id, error)
