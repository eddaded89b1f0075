"""The real runner with its real pipeline, which stops at the gates of a test; see `gates.py`.

A runner that computes shards of another worker's job stops at `helper`, before each shard; the job's own runner at
`shard`. Each shard that begins adds a line to `DATA/gates/JOB.shards`, if there are gates.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))  # a script imports installed packages and what lies beside it only

from benchmarks.harness.runners.gates import FOLDER, pass_gate
from replaceme_core.runner.messages import Message, ShardAnswer, Stage
from replaceme_core.runner.requests import RunnerRequest, ShardRequest
from worker import runner

run_pipeline = runner.compress
run_shards = runner.compute_shards


def gate_shards(request: RunnerRequest | ShardRequest, place: str) -> None:
    class GatedExchange(runner.ExchangeSender):
        def next(self, finished: int | None) -> ShardAnswer:
            answer = super().next(finished)
            if answer.number is not None:
                for folder in (above / FOLDER for above in Path(str(request.shard_directory)).parents):
                    if folder.is_dir():
                        with (folder / f"{request.job_id}.shards").open("a") as begun:
                            begun.write(f"{place} {answer.number}\n")
                pass_gate(request, place)
            return answer

    runner.ExchangeSender = GatedExchange  # type: ignore[misc]


def compress(line: bytes, writer: runner.MessageWriter) -> Message:
    request = RunnerRequest.model_validate_json(line)

    class GatedProgress(runner.ProgressSender):
        def stage(self, stage: Stage, *, resumed_from: Stage | None = None) -> None:
            super().stage(stage, resumed_from=resumed_from)
            pass_gate(request, stage.value)

    runner.ProgressSender = GatedProgress  # type: ignore[misc]
    gate_shards(request, "shard")
    last = run_pipeline(line, writer)
    pass_gate(request, "finished")
    return last


def compute_shards(line: bytes, writer: runner.MessageWriter) -> Message:
    gate_shards(ShardRequest.model_validate_json(line), "helper")
    return run_shards(line, writer)


if __name__ == "__main__":
    runner.compress = compress
    runner.compute_shards = compute_shards
    runner.run()
