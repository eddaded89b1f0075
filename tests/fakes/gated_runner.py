"""The real runner with its real pipeline, which stops at the gates of a test; see `gates.py`."""

from gates import pass_gate  # beside this script

from replaceme_core.progress import Message, RunnerRequest, Stage
from worker import runner

run_pipeline = runner.compress


def compress(line: bytes, outlet: runner.Outlet) -> Message:
    request = RunnerRequest.model_validate_json(line)

    class GatedProgress(runner.PipedProgress):
        def stage(self, stage: Stage, *, resumed_from: Stage | None = None) -> None:
            super().stage(stage, resumed_from=resumed_from)
            pass_gate(request, stage.value)

    runner.PipedProgress = GatedProgress  # type: ignore[misc]
    last = run_pipeline(line, outlet)
    pass_gate(request, "finished")
    return last


if __name__ == "__main__":
    runner.compress = compress
    runner.run()
