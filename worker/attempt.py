"""One attempt at a job: resolve, download, the runner process, publish. Never loads a model itself.

It sends no messages, and returns the write that ends the attempt in place of making it. When the lease ends early, the
runner and all that it started are killed (lease lost) or terminated and then killed (cancelled, out of time, shutdown),
and calls to the Hub are abandoned.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from sqlalchemy.orm import Session

from replaceme_core.errors import (
    BrokenModel,
    Cancelled,
    GateRejected,
    RateLimited,
    ReplaceMeError,
    RepositoryNotFound,
    StaleParent,
    Unavailable,
    WorkerLost,
)
from replaceme_core.hardware import WorkerKind
from replaceme_core.hub.model_config import read_outline
from replaceme_core.hub.port import REPORT, Hub, Publication, RepositoryKind, read_hub_json
from replaceme_core.ledger import attempts
from replaceme_core.ledger.records import Claim, Job
from replaceme_core.ledger.states import EventType
from replaceme_core.plan.duration import MODELLED, modelled_copy
from replaceme_core.plan.resources import planned_host_bytes
from replaceme_core.request.admission import OutputRules
from replaceme_core.request.gate import rejection_in
from replaceme_core.request.removal import check_removal
from replaceme_core.request.spec import CompressionSpec
from replaceme_core.runner.inputs import Pinned, fetch, held, resolve
from replaceme_core.runner.messages import (
    Advanced,
    Failed,
    Finished,
    Measured,
    PastJob,
    Resolved,
    RunnerRequest,
    Stage,
    StageStarted,
    without_paths,
)
from replaceme_core.runner.process import (
    RUNNER_COMMAND,
    Confinement,
    PerhapsOutOfMemory,
    Runner,
    RunnerBroke,
    RunnerKilled,
)
from replaceme_core.settings import Settings
from replaceme_core.wording import counted
from worker.lease import Lease, retry_under_lease
from worker.progress_writer import ProgressWriter
from worker.workspace import KeptResult, checkpoints_of_runner, find_result, keep_result

REASON = "the runner was killed"
"""Of the release of a job whose runner was ended by a SIGKILL that we did not send."""
T = TypeVar("T")
Write = Callable[[Session], None]
"""What ends an attempt in the ledger, in one transaction."""

logger = logging.getLogger(__name__)


def log_tail(runner: Runner, job_id: str) -> None:
    """Log what the runner wrote last: the message of a failed job does not say where things are on this machine."""
    lines = "\n".join(runner.end_of_log())
    logger.error("job %s: last lines of the runner's log", job_id, extra={"lines": lines})


def _end(runner: Runner, lease: Lease, *, grace_seconds: float) -> None:
    """Called in the lease's thread, so it must not block."""
    if lease.lost:
        runner.kill()
    else:
        grace = {"grace_seconds": grace_seconds}
        threading.Thread(target=runner.terminate, kwargs=grace, name="end-runner", daemon=True).start()


def outcome_after_sigkill(killed: RunnerKilled | PerhapsOutOfMemory, claim: Claim, *, max_attempts: int) -> Write:
    """The write that ends the attempt. A kill that was not for memory uses up one attempt, as a lost worker does.

    Where the cause is unknown the job is retried once: an operator seldom kills a runner twice, but a job that does not
    fit into memory is killed each time.
    """

    def write(session: Session) -> None:
        not_for_memory = isinstance(killed, RunnerKilled)
        if claim.counted < max_attempts and (not_for_memory or not _killed_before(session, claim)):
            attempts.release(session, claim, reason=REASON)
        elif not_for_memory:
            message = f"{killed.message} (attempt {claim.attempt} of {max_attempts + claim.uncounted_attempts})"
            attempts.fail(session, claim, code=WorkerLost.code, message=message)
        else:
            attempts.fail(session, claim, code=killed.code, message=killed.message)

    return write


def _killed_before(session: Session, claim: Claim) -> bool:
    events = attempts.history(session, claim)
    return any(event.type is EventType.RELEASED and event.data.get("reason") == REASON for event in events)


def _given(spec: CompressionSpec) -> tuple[object, ...]:
    """What a runner may not decide, since a later attempt begins with its specification: where from and where to."""
    files = [(one.name, one.revision) for one in spec.texts if one.is_on_hub or one.is_file]
    return spec.model, files, spec.output, spec.gate


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attempt at a job. `directory` is its workspace.

    `open_writer` is called for the Hub that gets the result, hours after `hub` was opened.
    `rules` are those for outputs of the job's owner; `history` are earlier jobs on this kind of worker.
    """

    job: Job
    settings: Settings
    confinement: Confinement
    hub: Hub
    open_writer: Callable[[], Hub]
    lease: Lease
    progress: ProgressWriter
    directory: Path
    rules: OutputRules
    history: Sequence[PastJob]
    began: float = field(default_factory=time.monotonic)

    def run(self) -> Write:
        """Returns the write that ends the attempt. Raises `LeaseLost`, `Cancelled`, or an error that fails the job."""
        self._enter(Stage.RESOLVE)
        earlier = self._earlier_result()
        if earlier is not None:
            return earlier
        kept = find_result(self.settings.workspace, self.job.id)
        if kept is not None:
            return self._publish(kept)
        spec, files = self._retry(
            lambda: resolve(
                self.job.spec,
                self.hub,
                calibration_root=self.settings.calibration_root,
                job_id=self.job.id,
                rules=self.rules,
                tasks_directory=self.settings.tasks_path,
            )
        )
        if spec != self.job.spec:
            self.progress.note(Resolved(spec=spec))
        self._enter(Stage.DOWNLOAD, size=files[0].size)
        with held(files, lambda: self.hub):
            return self._compute(spec, files)

    def _fetch(self, spec: CompressionSpec, files: Sequence[Pinned]) -> list[Path | None]:
        """A download goes on where it broke off: however often that is, it ends only if the Hub stays away."""
        most = 0.0

        def advance(fraction: float) -> None:
            nonlocal most
            most = max(most, fraction)
            self.lease.check()
            if self.lease.stage is Stage.DOWNLOAD:  # and not when they are looked at again
                self.progress.note(Advanced(stage=Stage.DOWNLOAD, fraction=fraction))

        def check(directory: Path) -> None:
            check_removal(spec, read_outline(directory))

        return self._retry(lambda: fetch(files, lambda: self.hub, advance=advance, check=check), done=lambda: most)

    def _compute(self, spec: CompressionSpec, files: Sequence[Pinned]) -> Write:
        model, *texts = self._fetch(spec, files)
        output = self.directory / "output"
        request = RunnerRequest(
            spec=self._with_device(spec).model_copy(update={"credential": None}),  # a runner uses no Hub
            model_directory=str(model),
            calibration_paths=tuple(None if path is None else str(path) for path in texts),
            output_directory=str(output),
            job_id=self.job.id,
            hub=self.settings.hub_address,
            needs_accelerator=self.job.worker_kind is WorkerKind.GPU,
            history=tuple(self.history),
            cache_directory=str(self.settings.statistics_cache),
            cache_bytes=self.settings.statistics_cache_bytes,
            checkpoint_directory=str(checkpoints_of_runner(self.settings.workspace, self.job.id)),
            tasks_directory=self.settings.tasks_path,
        )
        try:
            last = self._run_pipeline(request)
        except (RunnerKilled, PerhapsOutOfMemory) as killed:
            return outcome_after_sigkill(killed, self.lease.claim, max_attempts=self.settings.max_attempts)
        except RunnerBroke:
            self._fetch(spec, files)  # SIGBUS ends it when a file is truncated that a library has mapped
            raise
        if isinstance(last, Failed):
            return self._failure(last)
        rejection = None if spec.gate is None else rejection_in(last.report)
        if rejection is not None:  # the result misses its gate, or was not judged: it is neither kept nor published
            code, report = GateRejected.code, last.report
            return partial(attempts.fail, claim=self.lease.claim, code=code, message=rejection, report=report)
        self.lease.check()
        # a directory hub has no copy: what is written there meanwhile makes a result of two versions
        self._fetch(spec, files)
        kept = keep_result(self.settings.workspace, self.job.id, folder=output, spec=spec, finished=last)
        return self._publish(kept)

    def _with_device(self, spec: CompressionSpec) -> CompressionSpec:
        """A job for CPU workers stays on the CPU, even if this worker has a GPU."""
        if self.job.worker_kind is not WorkerKind.CPU or spec.compute.device is not None:
            return spec
        return spec.model_copy(update={"compute": spec.compute.model_copy(update={"device": WorkerKind.CPU.value})})

    def _run_pipeline(self, request: RunnerRequest) -> Finished | Failed:
        """Run the runner process; returns its final message.

        Raises what `lease.check` raises rather than the errors that follow from it.
        """
        self.lease.begin_stage(Stage.CALIBRATE)
        self.lease.check()
        runner = Runner(
            self.settings.runner_command or RUNNER_COMMAND,
            request,
            scratch=self.directory / "scratch",
            confinement=self.confinement.for_plan(partial(planned_host_bytes, request)),
            on_line=self.progress.log,
        )
        with runner:
            self.lease.on_end(partial(_end, runner, self.lease, grace_seconds=self.settings.cancel_grace_seconds))
            try:
                for message in runner.messages():
                    if isinstance(message, Finished | Failed):
                        self.lease.check()
                        if isinstance(message, Failed):
                            log_tail(runner, self.job.id)
                        return message
                    if isinstance(message, StageStarted):
                        self.lease.begin_stage(message.stage)
                    if isinstance(message, Resolved) and _given(message.spec) != _given(request.spec):
                        raise RunnerBroke("the runner changed what the job was asked to do")
                    self.progress.note(message)
            except ReplaceMeError:
                self.lease.check()  # the end of the lease may be the cause of the error
                log_tail(runner, self.job.id)
                raise
        raise AssertionError("messages() ends with a final message or an error")

    def _failure(self, last: Failed) -> Write:
        claim = self.lease.claim
        if last.code != Cancelled.code:
            return lambda session: attempts.fail(session, claim, code=last.code, message=without_paths(last.message))
        reason = "the runner was stopped from outside"  # for example when the host shuts down all processes at once
        if claim.counted < self.settings.max_attempts:
            return lambda session: attempts.release(session, claim, reason=reason)
        return lambda session: attempts.fail(
            session, claim, code=WorkerLost.code, message=f"{reason} at attempt {claim.attempt}"
        )

    def _publish(self, kept: KeptResult) -> Write:
        self._enter(Stage.PUBLISH, size=sum(path.stat().st_size for path in kept.folder.rglob("*") if path.is_file()))
        spec, finished = kept.spec, kept.finished
        repo_id = spec.output.repo_id
        assert repo_id is not None
        publication = Publication(
            folder=kept.folder,
            repo_id=repo_id,
            private=spec.output.private,
            title=f"Remove {counted(len(finished.removed_blocks), 'blocks')} of {spec.model.repo_id}",
            spec_digest=spec.fingerprint(),
            job_id=self.job.id,
            create_pr=spec.output.create_pr,
        )

        def publish() -> str:
            try:
                return self.open_writer().publish(
                    publication,
                    before_commit=self.lease.last_check,
                    may_replace=lambda existing: self.rules.check_replacement(spec.output, existing),
                )
            except (RateLimited, StaleParent):
                self.lease.commit_refused()
                raise

        # as long as the result took: after that it is no cheaper to wait than to compute it again
        took = time.monotonic() - self.began
        revision = self._retry(publish, retry_on=(Unavailable, StaleParent), at_least=took)
        claim, report = self.lease.claim, finished.report
        return partial(attempts.succeed, claim=claim, repo_id=repo_id, revision=revision, report=report)

    def _earlier_result(self) -> Write | None:
        """The write for a result that an earlier attempt published before its worker died; `None` if there is none."""
        repo_id = self.job.spec.output.repo_id
        if self.lease.claim.attempt == 1 or repo_id is None:
            return None

        def find() -> Write | None:
            revision = self.hub.find_publication(repo_id, self.job.id, create_pr=self.job.spec.output.create_pr)
            if revision is None:
                return None
            hub = self.hub.as_writer()  # it may be private
            report = read_hub_json(hub, hub.resolve(repo_id, kind=RepositoryKind.MODEL, revision=revision), REPORT)
            return partial(attempts.succeed, claim=self.lease.claim, repo_id=repo_id, revision=revision, report=report)

        try:
            return self._retry(find)
        except (RepositoryNotFound, BrokenModel) as error:
            logger.warning("job %s: the result of an earlier attempt cannot be used: %s", self.job.id, error)
            return None

    def _enter(self, stage: Stage, *, size: int | None = None) -> None:
        """`size`: the bytes that the stage copies."""
        self.lease.check()
        self.lease.begin_stage(stage)
        self.progress.note(StageStarted(stage=stage))
        if size is not None:
            expected = modelled_copy(stage, size, is_remote=self.settings.hub_address is not None)
            self.progress.note(Measured(stage=stage, name=MODELLED, value=expected, unit="s"))

    def _retry(
        self,
        call: Callable[[], T],
        *,
        retry_on: tuple[type[ReplaceMeError], ...] = (Unavailable,),
        at_least: float = 0.0,
        done: Callable[[], float] = lambda: 0.0,
    ) -> T:
        """`retry_under_lease` for as long as the settings say, or for `at_least` these seconds."""
        seconds = max(self.settings.hub_patience_seconds, at_least)
        return retry_under_lease(self.lease, call, seconds=seconds, retry_on=retry_on, done=done)
