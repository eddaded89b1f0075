"""Peak memory of `replaceme compress` with blocks read one at a time, against half the float32 weights.

    python -m benchmarks.memory [--model DIR] [--text FILE] [--loading blockwise] [--samples 64] [--limit] [--json FILE]

The limit is half of the weights in float32, plus one stream of all tokens, plus the sums; all three sizes are printed.
The peak is the largest resident memory of any stage, minus what was resident after imports. With `--limit` the address
space of the process is limited, too: beyond what a process needs after all imports, it has the size of the whole
weights in float32, so that `--loading whole` fails. The exit status is 1 if the peak exceeds the limit.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.smollm2 import provide

LENGTH, BATCH_SIZE, RATIO = 512, 8, 0.25


def compress(model: Path, out: Path, *, options: argparse.Namespace) -> dict[str, object]:
    """Run `replaceme compress` and return its `replaceme.json`. Raises `CalledProcessError`."""
    command: list[str | Path] = [Path(sys.executable).with_name("replaceme"), "compress", model, "--out", out]
    command += ["--ratio", str(options.ratio), "--calibration", options.text, "--samples", str(options.samples)]
    command += ["--max-length", str(LENGTH), "--batch-size", str(options.batch_size), "--dtype", "float32"]
    command += ["--device", "cpu", "--method", "least_squares", "--self-generated", "0"]
    command += ["--threads", str(options.threads), "--loading", options.loading, "--no-evaluate", "--json"]
    environment = {**os.environ, "MALLOC_ARENA_MAX": "2"}
    if options.limit:
        runner = [sys.executable, "-m", "benchmarks.memory", "--runner", "--model", str(model.absolute())]
        environment["PYTHONPATH"] = str(Path(__file__).parents[1])  # the runner's working directory is its own
        environment["REPLACEME_RUNNER_COMMAND"] = json.dumps(runner)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    report: dict[str, object] = json.loads((out / "replaceme.json").read_text())
    return report


def limited_runner(model: Path) -> None:
    """Run the runner in an address space that holds its imports and the whole weights in float32."""
    import resource

    import torch  # noqa: F401 - so that the limit does not count it
    import transformers.generation
    import transformers.models.llama.modeling_llama  # noqa: F401

    import replaceme_core.engine.pipeline  # noqa: F401
    from worker.runner import run

    rows = Path("/proc/self/status").read_text().splitlines()
    size = next(int(row.split()[1]) * 1024 for row in rows if row.startswith("VmSize"))
    limit = size + float32_bytes(model)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    run()


def float32_bytes(model: Path) -> int:
    from replaceme_core.engine.model.load import stored_weights

    return 4 * stored_weights(model).values


def judge(report: dict[str, object], weights: int) -> dict[str, int]:
    """Peak and limit in bytes, and the sizes that the limit is made of. `weights`: bytes in float32."""
    stages, activations = report["stages"], report["captured"]
    assert isinstance(stages, list)
    assert isinstance(activations, dict)
    peak = max(stage["peak_bytes"] for stage in stages) - int(str(report["imported_bytes"]))
    return {
        "peak_bytes": peak,
        "weight_bytes": weights,
        "stream_bytes": activations["stream_bytes"],
        "statistics_bytes": activations["statistics_bytes"],
        "allowed_bytes": weights // 2 + activations["stream_bytes"] + activations["statistics_bytes"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="model directory (default: SmolLM2-135M-Instruct from its wheel)")
    parser.add_argument("--text", default="builtin:pydoc-topics", help="calibration text (default: %(default)s)")
    parser.add_argument("--loading", choices=["auto", "whole", "blockwise"], default="blockwise")
    parser.add_argument(
        "--ratio",
        type=float,
        default=RATIO,
        help="share of blocks to remove; a larger one has fewer windows and sums (default: %(default)s)",
    )
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE)
    parser.add_argument("--limit", action="store_true", help="limit the address space, too")
    parser.add_argument("--json", type=Path, help="write the result to this file, too")
    parser.add_argument("--runner", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.runner:
        limited_runner(options.model)
        return
    model = options.model or provide(Path("data/smollm2"))
    with tempfile.TemporaryDirectory() as scratch:
        report = compress(model.resolve(), Path(scratch) / "out", options=options)
    result = judge(report, float32_bytes(model))
    print("| | MB |\n|---|---|")
    for name, value in result.items():
        print(f"| {name.removesuffix('_bytes')} | {value / 1e6:.0f} |")
    stages = report["stages"]
    assert isinstance(stages, list)
    imported = int(str(report["imported_bytes"]))
    for stage in stages:
        print(f"| stage {stage['name']} ({stage['seconds']:.1f} s) | {(stage['peak_bytes'] - imported) / 1e6:.0f} |")
    fits = result["peak_bytes"] <= result["allowed_bytes"]
    print(f"\n{'within' if fits else 'EXCEEDS'} half the weights in float32, one stream and the sums")
    if options.json:
        options.json.write_text(json.dumps({**result, "within": fits, "stages": stages}, indent=2) + "\n")
    sys.exit(0 if fits else 1)


if __name__ == "__main__":
    main()
