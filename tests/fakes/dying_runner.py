"""The real runner on the real pipeline. A job labelled `dies` ends its worker with kill -9, once, at that stage."""

import os
import signal
from pathlib import Path

from replaceme_core import pipeline
from replaceme_core.runner.messages import Exchange, Finished, Progress, RunnerRequest, Stage
from worker import runner

compress = pipeline.compress


class Deadly:
    """Passes everything on, and kills the process that waits for this one at the beginning of a stage."""

    def __init__(self, progress: Progress, stage: str) -> None:
        self._progress, self._stage = progress, stage

    def __getattr__(self, name: str) -> object:
        return getattr(self._progress, name)

    def stage(self, stage: Stage, *, resumed_from: Stage | None = None) -> None:
        self._progress.stage(stage, resumed_from=resumed_from)
        if stage == self._stage:
            os.kill(os.getppid(), signal.SIGKILL)
            signal.pause()  # the kernel, or the guard, ends this process


def compress_or_die(request: RunnerRequest, progress: Progress, exchange: Exchange) -> Finished:
    at = request.spec.labels.get("dies")
    died_before = Path(request.output_directory).parents[2] / f"died-{request.job_id}"
    if at is not None and not died_before.exists():
        died_before.touch()
        return compress(request, Deadly(progress, at), exchange)  # type: ignore[arg-type]
    return compress(request, progress, exchange)


if __name__ == "__main__":
    pipeline.compress = compress_or_die
    runner.run()
