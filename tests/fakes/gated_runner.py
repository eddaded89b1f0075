"""The real runner with its real pipeline, which stops at the gates of a test; see `gates.py`."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))  # a script imports installed packages and what lies beside it only

from benchmarks.harness.runners.gates import pass_gate
from replaceme_core.runner.messages import Message, RunnerRequest, Stage
from worker import runner

run_pipeline = runner.compress


def compress(request: RunnerRequest, writer: runner.MessageWriter) -> Message:
    class GatedProgress(runner.Progress):
        def stage(self, stage: Stage, *, resumed_from: Stage | None = None) -> None:
            super().stage(stage, resumed_from=resumed_from)
            pass_gate(request, stage.value)

    runner.Progress = GatedProgress  # type: ignore[misc]
    last = run_pipeline(request, writer)
    pass_gate(request, "finished")
    return last


if __name__ == "__main__":
    runner.compress = compress
    runner.run()
