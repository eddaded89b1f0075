"""The real runner with a stub in place of the pipeline. Labels of a job control it:

`stub.seconds`    how long `calibrate` takes
`stub.fail`       `space`, `memory`, `input`, `bug` or `exit`: how it fails after `calibrate`
`stub.stubborn`   it ignores SIGTERM
`stub.child`      it starts a child process in its process group
`stub.redirects`  it says that its job names another place for its result
`stub.ratio`      the ratio of perplexities by which it judges a gate, 1.25 without it; `none`: it does not judge

At the beginning of each stage, and after the last one (`finished`), it stops if a test has set a gate (`gates.py`).
"""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

from gates import pass_gate  # beside this script

from replaceme_core.errors import CalibrationTooSmall
from replaceme_core.request.spec import OutputSpec
from replaceme_core.runner.messages import Finished, Progress, RunnerRequest, Stage
from worker import runner

BLOCKS = 4
STEP_SECONDS = 0.05


def compress(request: RunnerRequest, progress: Progress) -> Finished:
    labels = request.spec.labels
    sys.stdout.write("a library writes something on standard output\n")
    if "stub.stubborn" in labels:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "stub.child" in labels:
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    compute = request.spec.compute.model_copy(update={"device": "cpu", "dtype": "float32"})
    spec = request.spec.model_copy(update={"compute": compute})
    if "stub.redirects" in labels:
        spec = spec.model_copy(update={"output": OutputSpec(repo_id="acme/elsewhere")})
    progress.resolved(spec, expected=dict.fromkeys(Stage, 1.0))
    enter(Stage.CALIBRATE, request, progress)
    partial = Path(request.output_directory + ".partial")
    partial.mkdir(parents=True)
    began, seconds = time.monotonic(), float(labels.get("stub.seconds", "0"))
    while (passed := time.monotonic() - began) < seconds:
        progress.advance(passed / seconds)
        time.sleep(STEP_SECONDS)
    progress.metric("tokens", 512, "tokens")
    progress.metric("held_out_loss", float("nan"), "nats", candidate="2-3")
    fail(labels.get("stub.fail"))
    for stage in (Stage.SELECT, Stage.SOLVE, Stage.FOLD, Stage.SAVE):
        enter(stage, request, progress)
        progress.advance(1.0)
    environment = Path(f"/proc/{os.getpid()}/environ").read_bytes().decode().split("\0")
    report: dict[str, object] = {
        "job_id": request.job_id,
        "removed_blocks": [2],
        "kept_blocks": [0, 1, 3],
        "environment": environment,
        "loss": float("nan"),
        "hub": request.hub,
        "cache_directory": request.cache_directory,
        "needs_accelerator": request.needs_accelerator,
        "tasks_directory": request.tasks_directory,
    }
    report |= judged(request)
    (partial / "config.json").write_bytes((Path(request.model_directory) / "config.json").read_bytes())
    (partial / "model.safetensors").write_bytes(b"weights")
    (partial / "replaceme.json").write_text(json.dumps({**report, "loss": None}))
    if request.spec.evaluation.enabled:
        enter(Stage.EVALUATE, request, progress)
    partial.rename(request.output_directory)
    pass_gate(request, "finished")
    return Finished(report=report)


def judged(request: RunnerRequest) -> dict[str, object]:
    """The verdict on the gate, as the pipeline reports it."""
    gate, ratio = request.spec.gate, request.spec.labels.get("stub.ratio", "1.25")
    if gate is None or ratio == "none":
        return {}
    values = dict.fromkeys(("perplexity_ratio", "worst_perplexity_ratio"), float(ratio))
    return {
        "gate": gate.judge({**values, "divergence": 0.25, "agreement": 0.75, "size_ratio": 0.75}).model_dump(
            mode="json"
        )
    }


def enter(stage: Stage, request: RunnerRequest, progress: Progress) -> None:
    progress.stage(stage)
    pass_gate(request, stage.value)


def fail(how: str | None) -> None:
    match how:
        case "space":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        case "memory":
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 TB")
        case "input":
            raise CalibrationTooSmall("the text has 12 tokens, 1024 are needed", field="calibration")
        case "bug":
            raise KeyError("lost")
        case "exit":
            os.write(2, b"the last line\n")
            os._exit(3)


if __name__ == "__main__":
    pipeline = ModuleType("replaceme_core.engine.pipeline")
    pipeline.compress = compress  # type: ignore[attr-defined]
    sys.modules[pipeline.__name__] = pipeline
    runner.run()
