"""The real runner with its real pipeline, which stops at the gates of a test; see `gates.py`.

What takes shards of another worker's job stops at `visit`, with each shard in hand; what carries out the job does so at
`shard`. Each shard that is begun is a line in `DATA/gates/JOB.shards`, if there are gates.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))  # a script imports installed packages and what lies beside it only

from benchmarks.harness.runners.gates import FOLDER, pass_gate
from replaceme_core.runner.messages import Message, RunnerRequest, ShardAnswer, ShardRequest, Stage
from worker import runner

run_pipeline = runner.compress
run_shards = runner.share


def gate_shards(request: RunnerRequest | ShardRequest, place: str) -> None:
    class GatedExchange(runner.PipedExchange):
        def next(self, finished: int | None) -> ShardAnswer:
            answer = super().next(finished)
            if answer.number is not None:
                for folder in (above / FOLDER for above in Path(str(request.shard_directory)).parents):
                    if folder.is_dir():
                        with (folder / f"{request.job_id}.shards").open("a") as begun:
                            begun.write(f"{place} {answer.number}\n")
                pass_gate(request, place)
            return answer

    runner.PipedExchange = GatedExchange  # type: ignore[misc]


def compress(line: bytes, outlet: runner.Outlet) -> Message:
    request = RunnerRequest.model_validate_json(line)

    class GatedProgress(runner.PipedProgress):
        def stage(self, stage: Stage, *, resumed_from: Stage | None = None) -> None:
            super().stage(stage, resumed_from=resumed_from)
            pass_gate(request, stage.value)

    runner.PipedProgress = GatedProgress  # type: ignore[misc]
    gate_shards(request, "shard")
    last = run_pipeline(line, outlet)
    pass_gate(request, "finished")
    return last


def share(line: bytes, outlet: runner.Outlet) -> Message:
    gate_shards(ShardRequest.model_validate_json(line), "visit")
    return run_shards(line, outlet)


if __name__ == "__main__":
    runner.compress = compress
    runner.share = share
    runner.run()
