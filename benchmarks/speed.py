"""Time and memory of `replaceme compress`: against two dense passes, with a filled cache, and by amount of work.

    python -m benchmarks.speed [--model DIR] [--text FILE] [--parts pairs default second cosine growth] [--pairs 3]
                               [--dtype float32] [--dense-dtype float32] [--device cpu] [--json FILE]

pairs   Time against two dense forward passes with logits over the same tokens. This is the minimum of the reference
        implementation: one pass for the distances and one for the fit, both with logits. The two sides alternate, in
        separate processes with the same threads and batch size, so that changes of the machine's speed affect both.
default The same with what `replaceme compress` does where nothing is named: the method is open, and other text comes
        beside the given one; the dense passes read as many samples. Once, since it takes several times as long. All
        other parts calibrate on the one text.
second  A second ratio on the same model and text, with the activation cache of the first: the number of dense blocks
        that run, and the time relative to the first, without imports and loading.
cosine  `cosine` and `least_squares` alternate, on the tokens of the other parts and on twice as many: the ratio of
        their times, and the peak memory of both, which must not grow with the tokens.
growth  Time by number of tokens, of blocks (the first ones of the model) and of candidates (a smaller ratio has more
        windows).
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
from replaceme_core.request.defaults import CPU_SAMPLES_OF_OPEN_MIX

SAMPLES, LENGTH, BATCH_SIZE, RATIO, SECOND_RATIO = 64, 512, 8, 0.25, 0.375
MEMORY_FACTOR, MEMORY_EXTRA = 2.5, 10**9
WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, kw_only=True)
class Run:
    """Seconds of a whole `compress` process, of its stages, and of the stages without loading models; and memory.

    `peak_bytes` is without imports; `expected_bytes` and `actual_bytes` are the peak of the plan and the whole one.
    """

    process_seconds: float
    stage_seconds: float
    working_seconds: float
    stages: dict[str, float]
    peak_bytes: int
    expected_bytes: int
    actual_bytes: int
    dense_block_runs: int
    candidates: int


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One `compress` and one measurement of two dense passes."""

    compress: Run
    dense_seconds: float
    allowed_bytes: int


def dense(model: Path, *, dtype: str, threads: int, samples: int, device: str) -> float:
    """Seconds of two dense passes over `samples` sequences with logits, without cache and hidden states."""
    import torch

    from replaceme_core.engine.model.device import synchronise
    from replaceme_core.engine.model.load import DTYPES, load_model

    torch.set_num_threads(threads)
    loaded = load_model(model, dtype=DTYPES[dtype], device=device)
    tokens = torch.randint(0, loaded.config.vocab_size, (samples, LENGTH), generator=torch.Generator().manual_seed(0))
    tokens = tokens.to(device)
    with torch.inference_mode():
        loaded(input_ids=tokens[:1], use_cache=False)
        synchronise(tokens.device)
        begin = time.perf_counter()
        for _ in range(2):
            for batch in tokens.split(BATCH_SIZE):
                loaded(input_ids=batch, use_cache=False)
        synchronise(tokens.device)
        return time.perf_counter() - begin


def shorten(model: Path, target: Path, *, blocks: int) -> None:
    """Save the first `blocks` blocks of `model`."""
    import torch

    from replaceme_core.engine.model.changes import remove_blocks
    from replaceme_core.engine.model.load import load_model, stored_weights
    from replaceme_core.engine.model.save import save_model
    from replaceme_core.families.resolve import resolve

    with torch.inference_mode():
        loaded = load_model(model, dtype=stored_weights(model).dtype, device="cpu")
        resolved = resolve(loaded)
        remove_blocks(resolved, range(blocks, len(resolved.blocks)))
        save_model(loaded, target, source=model)


def compress(
    model: Path,
    options: argparse.Namespace,
    *,
    ratio: float = RATIO,
    samples: int | None = SAMPLES,
    method: str | None = "least_squares",
    cache: Path | None = None,
) -> Run:
    """Run `replaceme compress` without evaluation, on the one text; without `method` and `samples` with all defaults.

    Exits if it fails.
    """
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "out"
        command: list[str | Path] = [Path(sys.executable).with_name("replaceme"), "compress", model, "--out", out]
        command += ["--calibration", options.text, "--ratio", str(ratio)]
        if samples is not None:
            command += ["--samples", str(samples)]
        if method is not None:
            command += ["--method", method, "--self-generated", "0"]
        command += ["--max-length", str(LENGTH), "--batch-size", str(BATCH_SIZE), "--dtype", options.dtype]
        command += ["--threads", str(options.threads), "--device", options.device, "--no-evaluate", "--json"]
        if cache is not None:
            command += ["--cache", cache]
        begin = time.perf_counter()
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{done.stderr}\nreplaceme compress ended with {done.returncode}")
        process_seconds = time.perf_counter() - begin
        report = json.loads((out / "replaceme.json").read_text())
    stages = {stage["name"]: stage["seconds"] for stage in report["stages"]}
    total, peak = sum(stages.values()), max(stage["peak_bytes"] for stage in report["stages"])
    return Run(
        process_seconds=process_seconds,
        stage_seconds=total,
        working_seconds=total - report["loading_seconds"],
        stages=stages,
        peak_bytes=peak - report["imported_bytes"],
        expected_bytes=max(stage["expected_peak_bytes"] for stage in report["plan"]["stages"]),
        actual_bytes=peak,
        dense_block_runs=report["captured"]["dense_block_runs"],
        candidates=len(report["candidates"]),
    )


def default(model: Path, options: argparse.Namespace) -> dict[str, object]:
    """Part `default`; see the module."""
    return _pairs(model, options, count=1, method=None, samples=None)


def pairs(model: Path, options: argparse.Namespace) -> dict[str, object]:
    """Part `pairs`; see the module."""
    return _pairs(model, options, count=options.pairs, method="least_squares")


def _pairs(
    model: Path, options: argparse.Namespace, *, count: int, method: str | None, samples: int | None = SAMPLES
) -> dict[str, object]:
    from replaceme_core.engine.model.load import stored_weights

    allowed = int(MEMORY_FACTOR * stored_weights(model).values * WIDTHS[options.dtype] + MEMORY_EXTRA)
    found = []
    for index in range(count):
        run = compress(model, options, method=method, samples=samples)
        again = [sys.executable, "-m", "benchmarks.speed", "--dense", "--model", model, "--threads"]
        again += [str(options.threads), "--dense-dtype", options.dense_dtype, "--device", options.device]
        again += ["--dense-samples", str(samples or CPU_SAMPLES_OF_OPEN_MIX)]
        seconds = float(subprocess.run(again, check=True, capture_output=True).stdout)
        found.append(Pair(compress=run, dense_seconds=seconds, allowed_bytes=allowed))
        print(
            f"pair {index + 1}: compress in {options.dtype} {run.process_seconds:.1f} s (stages "
            f"{run.stage_seconds:.1f} s), two dense passes in {options.dense_dtype} {seconds:.1f} s, ratio "
            f"{run.process_seconds / seconds:.2f}; peak above imports {run.peak_bytes / 1e9:.2f} GB "
            f"(limit {allowed / 1e9:.2f} GB)",
            flush=True,
        )
    by_process, by_stages = (
        statistics.median(getattr(pair.compress, name) / pair.dense_seconds for pair in found)
        for name in ("process_seconds", "stage_seconds")
    )
    limit = 0.6 if options.dtype == options.dense_dtype else 0.4
    print(f"median ratio {by_process:.2f}, of the stages {by_stages:.2f} (limit {limit})")
    return {"process_ratio": by_process, "stage_ratio": by_stages, "pairs": [asdict(pair) for pair in found]}


def second(model: Path, options: argparse.Namespace) -> dict[str, object]:
    """Part `second`; see the module."""
    with tempfile.TemporaryDirectory() as scratch:
        first = compress(model, options, cache=Path(scratch))
        again = compress(model, options, ratio=SECOND_RATIO, cache=Path(scratch))
        kept = sum(path.stat().st_size for path in Path(scratch).rglob("*") if path.is_file())
    share = again.working_seconds / first.working_seconds
    print(
        f"ratio {RATIO}: {first.working_seconds:.1f} s, {first.dense_block_runs} runs of a dense block; then ratio "
        f"{SECOND_RATIO}: {again.working_seconds:.1f} s, {again.dense_block_runs} runs; {share:.2f} of the first, "
        f"without imports and loading (limit 0.25); {kept / 1e9:.2f} GB in the cache"
    )
    return {"share": share, "kept_bytes": kept, "first": asdict(first), "second": asdict(again)}


def cosine(model: Path, options: argparse.Namespace) -> dict[str, object]:
    """Part `cosine`; see the module."""
    rows: dict[str, object] = {}
    for samples in (SAMPLES, 2 * SAMPLES):
        runs = [
            [compress(model, options, samples=samples, method=method) for method in ("least_squares", "cosine")]
            for _ in range(options.pairs)
        ]
        ratio = statistics.median(ours.stage_seconds / theirs.stage_seconds for theirs, ours in runs)
        peaks = [max(run.peak_bytes for run in some) / 1e6 for some in zip(*runs, strict=True)]
        rows[str(samples * LENGTH)] = {"ratio": ratio, "runs": [[asdict(run) for run in pair] for pair in runs]}
        print(
            f"{samples * LENGTH:,} tokens: cosine takes {ratio:.2f} times as long as least_squares (limit 1.5); "
            f"peaks above imports {peaks[1]:.0f} and {peaks[0]:.0f} MB",
            flush=True,
        )
    return rows


def growth(model: Path, options: argparse.Namespace) -> dict[str, object]:
    """Part `growth`; see the module."""
    blocks = json.loads((model / "config.json").read_text())["num_hidden_layers"]
    rows: dict[str, dict[str, object]] = {"tokens": {}, "blocks": {}, "candidates": {}}
    print("| | | working s | calibrate s | select s |\n|---|---|---|---|---|")

    def add(kind: str, amount: int, run: Run) -> None:
        rows[kind][str(amount)] = asdict(run)
        stages = f"{run.stages['calibrate']:.1f} | {run.stages['select']:.1f}"
        print(f"| {kind} | {amount:,} | {run.working_seconds:.1f} | {stages} |", flush=True)

    for samples in (SAMPLES // 4, SAMPLES // 2, SAMPLES):
        add("tokens", samples * LENGTH, compress(model, options, samples=samples))
    for share in (1, 2, 3):
        some = blocks * share // 3
        with tempfile.TemporaryDirectory() as scratch:
            shorten(model, Path(scratch), blocks=some)
            add("blocks", some, compress(Path(scratch), options))
    for ratio in (0.5, 0.25, 0.1):
        run = compress(model, options, ratio=ratio)
        add("candidates", run.candidates, run)
    return dict(rows)


PARTS = {"pairs": pairs, "default": default, "second": second, "cosine": cosine, "growth": growth}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="model directory (default: SmolLM2-135M-Instruct from its wheel)")
    parser.add_argument("--text", default="builtin:pydoc-topics", help="calibration text (default: %(default)s)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument("--pairs", type=int, default=3, help="repetitions in `pairs` and `cosine` (default: 3)")
    parser.add_argument("--dtype", choices=WIDTHS, default="float32")
    parser.add_argument("--dense-dtype", choices=WIDTHS, default="float32")
    parser.add_argument("--dense-samples", type=int, default=SAMPLES, help="sequences of the dense passes")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    parser.add_argument("--json", type=Path, help="write the result to this file, too")
    parser.add_argument("--dense", action="store_true", help="run only the two dense passes and print their seconds")
    options = parser.parse_args()
    if options.dense:
        seconds = dense(
            options.model,
            dtype=options.dense_dtype,
            threads=options.threads,
            samples=options.dense_samples,
            device=options.device,
        )
        print(seconds)
        return
    model = (options.model or provide(Path("data/smollm2"))).resolve()
    result: dict[str, object] = {"dtype": options.dtype, "dense_dtype": options.dense_dtype}
    for part in options.parts:
        result[part] = PARTS[part](model, options)
        if options.json:  # after each part, in case a later one is interrupted
            options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
