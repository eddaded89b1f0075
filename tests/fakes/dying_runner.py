"""The real runner with the real pipeline. A job with the label `dies` kills its worker once, at the stage it names."""

import os
import signal
from pathlib import Path

from replaceme_core.engine import pipeline
from replaceme_core.runner.messages import Finished, Progress, RunnerRequest, Stage
from worker import runner

compress = pipeline.compress


class WorkerKiller:
    """Forwards all calls to `progress`, and kills the supervising process with SIGKILL when a stage begins."""

    def __init__(self, progress: Progress, stage: str) -> None:
        self._progress, self._stage = progress, stage

    def __getattr__(self, name: str) -> object:
        return getattr(self._progress, name)

    def stage(self, stage: Stage, *, resumed_from: Stage | None = None) -> None:
        self._progress.stage(stage, resumed_from=resumed_from)
        if stage == self._stage:
            os.kill(os.getppid(), signal.SIGKILL)
            signal.pause()  # the kernel or the guard ends this process


def compress_and_kill(request: RunnerRequest, progress: Progress) -> Finished:
    at = request.spec.labels.get("dies")
    killed_before = Path(request.output_directory).parents[2] / f"died-{request.job_id}"
    if at is not None and not killed_before.exists():
        killed_before.touch()
        return compress(request, WorkerKiller(progress, at))  # type: ignore[arg-type]
    return compress(request, progress)


if __name__ == "__main__":
    pipeline.compress = compress_and_kill
    runner.run()
