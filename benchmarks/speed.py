"""Time and memory of `replaceme compress` against two dense forward passes with logits over the same tokens.

Two dense passes are the least that the reference implementation spends (method: one for the distances, one for the
fit, logits computed each time). Both sides run in processes of their own with the same threads, dtype and batch size,
in turn, so that a machine whose speed drifts slows both:

    python -m benchmarks.speed [--model DIR] [--text FILE] [--pairs 3] [--dtype float32] [--json FILE]

Without a model it measures SmolLM2-135M-Instruct from its wheel, without a text the built-in one.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.smollm2 import provide

SAMPLES, LENGTH, BATCH_SIZE, RATIO = 64, 512, 8, 0.25
MEMORY_FACTOR, MEMORY_EXTRA = 2.5, 10**9


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Seconds of one turn: the whole `compress` process, its stages alone, and the dense passes alone."""

    process_seconds: float
    stage_seconds: float
    dense_seconds: float
    peak_bytes: int
    allowed_bytes: int


def dense(model: Path, *, dtype: str, threads: int) -> float:
    """Seconds of two passes with logits, without cache and hidden states; measured inside the process."""
    import torch

    from replaceme_core.modeling.load import DTYPES, load_model

    torch.set_num_threads(threads)
    loaded = load_model(model, dtype=DTYPES[dtype], device="cpu")
    tokens = torch.randint(0, loaded.config.vocab_size, (SAMPLES, LENGTH), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        loaded(input_ids=tokens[:1], use_cache=False)
        begin = time.perf_counter()
        for _ in range(2):
            for batch in tokens.split(BATCH_SIZE):
                loaded(input_ids=batch, use_cache=False)
        return time.perf_counter() - begin


def one_pair(model: Path, *, calibration: str, dtype: str, threads: int) -> Pair:
    out = Path(tempfile.mkdtemp()) / "out"
    options = ["--ratio", str(RATIO), "--samples", str(SAMPLES), "--max-length", str(LENGTH), "--no-evaluate", "--json"]
    settings = ["--batch-size", str(BATCH_SIZE), "--dtype", dtype, "--threads", str(threads), "--device", "cpu"]
    replaceme = Path(sys.executable).with_name("replaceme")
    begin = time.perf_counter()
    command: list[str | Path] = [
        replaceme,
        "compress",
        model,
        "--out",
        out,
        "--calibration",
        calibration,
        *options,
        *settings,
    ]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    process_seconds = time.perf_counter() - begin
    report = json.loads(done.stdout)
    imported = json.loads((out / "replaceme.json").read_text())["imported_bytes"]
    again: list[str | Path] = [sys.executable, "-m", "benchmarks.speed", "--dense", "--model", model, "--dtype", dtype]
    dense_seconds = float(subprocess.run([*again, "--threads", str(threads)], check=True, capture_output=True).stdout)
    width = {"float32": 4, "bfloat16": 2, "float16": 2}[dtype]
    stored = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    weights = stored // 2 * width  # both are stored in two bytes a value
    return Pair(
        process_seconds=process_seconds,
        stage_seconds=sum(stage["seconds"] for stage in report["stages"]),
        dense_seconds=dense_seconds,
        peak_bytes=max(stage["peak_bytes"] for stage in report["stages"]) - imported,
        allowed_bytes=int(MEMORY_FACTOR * weights + MEMORY_EXTRA),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a directory with bfloat16 weights")
    parser.add_argument("--text", default="builtin:pydoc-topics")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--dense", action="store_true", help="only the dense passes: print their seconds")
    options = parser.parse_args()
    if options.dense:
        print(dense(options.model, dtype=options.dtype, threads=options.threads))
        return
    model = options.model or provide(Path("data/smollm2"))
    pairs = []
    for index in range(options.pairs):
        pair = one_pair(model, calibration=options.text, dtype=options.dtype, threads=options.threads)
        pairs.append(pair)
        print(
            f"pair {index + 1}: compress {pair.process_seconds:.1f} s (stages {pair.stage_seconds:.1f} s), two dense "
            f"passes {pair.dense_seconds:.1f} s, ratio {pair.process_seconds / pair.dense_seconds:.2f}; peak above "
            f"imports {pair.peak_bytes / 1e9:.2f} GB of {pair.allowed_bytes / 1e9:.2f} GB",
            flush=True,
        )
    ratio = statistics.median(pair.process_seconds / pair.dense_seconds for pair in pairs)
    peak = max(pair.peak_bytes for pair in pairs)
    print(f"median ratio {ratio:.2f} (at most 0.70 is wanted), peak {peak / 1e9:.2f} GB above imports")
    if options.json:
        result = {"dtype": options.dtype, "ratio": ratio, "peak_bytes": peak, "pairs": [asdict(pair) for pair in pairs]}
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
