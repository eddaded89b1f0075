"""One attempt at a job: resolve, download, the runner process, publish. Never loads a model itself.

Knows no queue, and of the ledger only what is to be written at the end. When the lease ends early the runner is killed
(lease lost) or asked to stop and then killed (cancelled, out of time), and work on the Hub is left behind.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from replaceme_core.admission.worker_kind import WorkerKind
from replaceme_core.errors import (
    BrokenModel,
    Cancelled,
    HubUnreachable,
    ReplaceMeError,
    RepositoryNotFound,
    StaleParent,
    WorkerLost,
)
from replaceme_core.hub.port import Hub, Publication, RepositoryKind
from replaceme_core.jobs.records import Job
from replaceme_core.jobs.repository import Jobs
from replaceme_core.runner.messages import (
    Advanced,
    Failed,
    Finished,
    Resolved,
    RunnerRequest,
    ShardsPlanned,
    ShardWanted,
    Stage,
    StageStarted,
)
from replaceme_core.runner.process import PerhapsOutOfMemory, RunnerKilled
from replaceme_core.settings import Settings
from replaceme_core.spec import CompressionSpec
from worker import sources
from worker.hub_retry import patiently
from worker.lease import Lease
from worker.processes.after_sigkill import after_kill
from worker.processes.leased_runner import running
from worker.progress_writer import Recorder
from worker.shards.coordinator import ShardDesk
from worker.workspace import checkpoints_of, shards_of

REPORT = "replaceme.json"

T = TypeVar("T")
Write = Callable[[Jobs], None]

logger = logging.getLogger(__name__)


class Attempt:
    """One attempt at a job, within its workspace `place`."""

    def __init__(
        self,
        job: Job,
        *,
        settings: Settings,
        hub: Hub,
        lease: Lease,
        recorder: Recorder,
        desk: ShardDesk,
        place: Path,
    ) -> None:
        self._job = job
        self._settings = settings
        self._hub = hub
        self._lease = lease
        self._recorder = recorder
        self._desk = desk
        self._place = place
        self._trailer = f"ReplaceMe-Job: {job.id}"

    def carry_out(self) -> Write:
        """Returns what there is to write at the end. Raises `LeaseLost`, `Cancelled` and what makes a job fail."""
        self._enter(Stage.RESOLVE)
        published = self._published_before()
        if published is not None:
            return published
        wanted = self._patiently(
            lambda: sources.resolve(
                self._job.spec, self._hub, calibration_root=self._settings.calibration_root, job_id=self._job.id
            )
        )
        if wanted.spec != self._job.spec:
            self._recorder.note(Resolved(spec=wanted.spec))
        self._enter(Stage.DOWNLOAD)
        local = self._patiently(lambda: sources.fetch(wanted, self._hub, advance=self._advance(Stage.DOWNLOAD)))
        output = self._place / "output"
        request = RunnerRequest(
            spec=self._routed(wanted.spec),
            model_directory=str(local.model_directory),
            calibration_path=str(local.calibration_path) if local.calibration_path is not None else None,
            output_directory=str(output),
            job_id=self._job.id,
            needs_accelerator=self._job.worker_kind is WorkerKind.GPU,
            cache_directory=str(self._settings.statistics_cache),
            cache_bytes=self._settings.statistics_cache_bytes,
            checkpoint_directory=str(checkpoints_of(self._settings.workspace, self._job.id)),
            shard_tokens=self._settings.shard_tokens or None,
            shard_count=self._settings.shards,
            shard_directory=str(shards_of(self._settings.workspace, self._job.id)),
        )
        try:
            last = self._run(request)
        except (RunnerKilled, PerhapsOutOfMemory) as killed:
            return after_kill(killed, self._lease.claim, max_attempts=self._settings.max_attempts)
        if isinstance(last, Failed):
            return self._failure(last)
        return self._publish(wanted.spec, output, last)

    def _routed(self, spec: CompressionSpec) -> CompressionSpec:
        """A job for CPU workers stays on the CPU, also where its worker could see a GPU."""
        if self._job.worker_kind is not WorkerKind.CPU or spec.compute.device is not None:
            return spec
        return spec.model_copy(update={"compute": spec.compute.model_copy(update={"device": WorkerKind.CPU.value})})

    def _run(self, request: RunnerRequest) -> Finished | Failed:
        """The runner process, from its start until nothing of it is left."""
        with running(request, lease=self._lease, settings=self._settings, scratch=self._place / "scratch") as runner:
            for message in runner.messages():
                match message:
                    case Finished() | Failed():
                        self._lease.check()
                        return message
                    case ShardsPlanned() | ShardWanted():
                        runner.answer(self._desk.answer(message))
                    case _:
                        self._recorder.note(message)
        raise AssertionError("messages() ends with a last word or an error")

    def _failure(self, last: Failed) -> Write:
        claim = self._lease.claim
        if last.code != Cancelled.code:
            return lambda jobs: jobs.fail(claim, code=last.code, message=last.message)
        reason = "the runner was stopped from outside"  # such as a host that shuts down all processes at once
        if claim.counted < self._settings.max_attempts:
            return lambda jobs: jobs.release(claim, reason=reason)
        return lambda jobs: jobs.fail(claim, code=WorkerLost.code, message=f"{reason} at attempt {claim.attempt}")

    def _publish(self, spec: CompressionSpec, folder: Path, finished: Finished) -> Write:
        self._enter(Stage.PUBLISH)
        repo_id = spec.output.repo_id
        assert repo_id is not None
        publication = Publication(
            folder=folder,
            repo_id=repo_id,
            private=spec.output.private,
            title=f"Remove {len(finished.removed_blocks)} blocks of {spec.model.repo_id}",
            trailer=self._trailer,
        )
        revision = self._patiently(
            lambda: self._hub.publish(publication, before_commit=self._lease.last_check),
            again=(HubUnreachable, StaleParent),
        )
        return self._success(repo_id, revision, finished)

    def _published_before(self) -> Write | None:
        """An earlier attempt may have died between its commit and its last word to the ledger."""
        repo_id = self._job.spec.output.repo_id
        if self._lease.claim.attempt == 1 or repo_id is None:
            return None
        try:
            revision, report = self._patiently(lambda: self._find_result(repo_id))
            if revision is None:
                return None
            blocks = {name: report.get(name) for name in ("removed_blocks", "kept_blocks")}
            finished = Finished.model_validate({**blocks, "report": report})
        except (RepositoryNotFound, BrokenModel, ValidationError) as error:
            logger.warning("job %s: an earlier result cannot be taken over: %s", self._job.id, error)
            return None
        return self._success(repo_id, revision, finished)

    def _find_result(self, repo_id: str) -> tuple[str | None, dict[str, object]]:
        revision = self._hub.find_publication(repo_id, self._trailer)
        if revision is None:
            return None, {}
        snapshot = self._hub.resolve(repo_id, kind=RepositoryKind.MODEL, revision=revision)
        return revision, self._hub.read_json(snapshot, REPORT)

    def _success(self, repo_id: str, revision: str, finished: Finished) -> Write:
        return lambda jobs: jobs.succeed(
            self._lease.claim,
            repo_id=repo_id,
            revision=revision,
            removed_blocks=finished.removed_blocks,
            kept_blocks=finished.kept_blocks,
            report=finished.report,
        )

    def _enter(self, stage: Stage) -> None:
        self._lease.check()
        self._recorder.note(StageStarted(stage=stage))

    def _advance(self, stage: Stage) -> sources.Advance:
        def advance(fraction: float) -> None:
            self._lease.check()
            self._recorder.note(Advanced(stage=stage, fraction=fraction))

        return advance

    def _patiently(self, call: Callable[[], T], *, again: Sequence[type[ReplaceMeError]] = (HubUnreachable,)) -> T:
        return patiently(self._lease, call, seconds=self._settings.hub_patience_seconds, again=tuple(again))
