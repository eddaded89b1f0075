"""A runner without a model, for the local commands: `python local_runner.py MODE`.

`good` finishes; `searches` has tried two depths; `ungated` does not judge a gate; `differs` finishes with other weights
than those it was to compare with; `input`, `space`, `bug` fail with a final message; `dies` sends none; `hangs` waits
for a signal.
"""

import json
import os
import shutil
import sys
import time
from pathlib import Path

from replaceme_core.runner.messages import (
    REQUEST,
    Advanced,
    EvaluateRequest,
    Failed,
    Finished,
    Message,
    Stage,
    StageStarted,
)

MEASURED = {"perplexity": 32.26, "tokens": 8176, "parameters": 134_515_008, "bytes": 269_030_016}
REPORT: dict[str, object] = {
    "removed_blocks": [2],
    "kept_blocks": [0, 1, 3],
    "method": "least_squares",
    "auto_class": "AutoModelForImageTextToText",
    "candidates": [
        {"start": 2, "end": 2, "distance": 0.1, "residual": 0.25, "ridge": 0.1, "held_out_loss": 4.1, "chosen": True},
        {"start": 1, "end": 1, "distance": 0.1, "residual": "nan", "ridge": 0.1, "held_out_loss": None},
    ],
    "stages": [{"name": "calibrate", "seconds": 1.5, "peak_bytes": 1000}],
    "before": {**MEASURED, "tokens_per_second": 1000.0, "dtype": "bfloat16", "blocks": 4},
    "after": {**MEASURED, "perplexity": 60.6, "tokens_per_second": 1300.0, "dtype": "bfloat16", "blocks": 3},
    "texts": [{"name": "builtin:code", "before": 32.26, "after": 60.6, "divergence": 0.25}],
    "versions": {"replaceme": "0.1.0"},
    "device": {"type": "cpu", "hardware": "A Processor"},
    "numerics": {"computed_in": "float32", "threads": 1},
    "code": {"version": "0.1.0", "commit": None, "digest": "c" * 64},
    "tokens": {"fit": "f" * 64},
}
GATE_VALUES = {
    "perplexity_ratio": 1.5,
    "worst_perplexity_ratio": 2.0,
    "divergence": 0.25,
    "agreement": 0.75,
    "size_ratio": 0.75,
    "accuracy_kept": 0.9,
    "tasks.piqa": 0.9,
}
TRIALS = [
    {"blocks": 2, "passed": False, "measured": {"perplexity_ratio": 2.5}, "seconds": 1.0},
    {"blocks": 1, "passed": True, "measured": {"perplexity_ratio": 1.5, "accuracy_kept": 0.9}, "seconds": 2.0},
]
SAME = {"same": True, "tensors": 3, "differing_tensors": 0, "differing": []}
DIFFERING = {
    "same": False,
    "tensors": 3,
    "differing_tensors": 1,
    "differing": [
        {"name": "model.norm.weight", "what": "values", "values": 8, "differing": 2, "largest": 0.5, "relative": 0.25}
    ],
}


def send(message: Message) -> None:
    sys.stdout.write(message.model_dump_json() + "\n")
    sys.stdout.flush()


def main(mode: str) -> int:
    line = sys.stdin.readline()
    sys.stderr.write("a library warns\n")
    sys.stderr.flush()
    failures = {
        "input": Failed(code="calibration_too_small", message="12 tokens, 1024 are needed", field="calibration"),
        "space": Failed(code="out_of_space", message="no space left on the device"),
        "bug": Failed(code="internal_error", message="KeyError: lost"),
    }
    if mode == "dies":
        os._exit(3)
    request = REQUEST.validate_json(line)
    if isinstance(request, EvaluateRequest):
        send(StageStarted(stage=Stage.EVALUATE))
        measured = {**MEASURED, "tokens_per_second": 1000.0, "dtype": "bfloat16", "blocks": 30, "ratio": 1.0}
        models = [{**measured, "request": json.loads(line)} for _ in request.directories]
        send(Finished(report={"hardware": "A Processor", "threads": 1, "models": models}))
        return 0
    output = Path(request.output_directory)
    send(StageStarted(stage=Stage.CALIBRATE))
    send(Advanced(stage=Stage.CALIBRATE, fraction=0.5))
    if mode in failures:
        send(failures[mode])
        return 1
    output.with_name(".partial").mkdir()
    if mode == "hangs":
        time.sleep(600)
    for stage in (Stage.SELECT, Stage.SOLVE, Stage.FOLD, Stage.SAVE, Stage.EVALUATE):
        send(StageStarted(stage=stage))
    shutil.copytree(request.model_directory, output)
    (output / "replaceme.json").write_text(json.dumps({**REPORT, "request": json.loads(line)}))
    report = dict(REPORT)
    if request.spec.gate is not None and mode != "ungated":
        judged = request.spec.gate.judge(GATE_VALUES).model_dump(mode="json")
        report["gate"] = {**judged, "trials": TRIALS if mode == "searches" else []}
    if request.compare_with is not None:
        report["comparison"] = DIFFERING if mode == "differs" else SAME
    send(Finished(report=report))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
