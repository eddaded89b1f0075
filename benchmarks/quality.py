"""Perplexity of the pruned model on text that calibration did not see, for methods and ratios.

    python -m benchmarks.quality [--model DIR] [--wikitext FILE] [--methods least_squares drop] [--ratios 0.25]
                                 [--samples 64] [--max-length 512] [--dtypes float32 bfloat16] [--json FILE]

With `--wikitext`, its first 60 % calibrate and its last 40 % measure (16 x 512 tokens that do not overlap). Without it,
the built-in text does both, split by the pipeline itself. Without a model, SmolLM2-135M-Instruct from its wheel.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.smollm2 import provide
from benchmarks.wikitext import detokenise, split

REPLACEME = Path(sys.executable).with_name("replaceme")
MEASURE = ("--samples", "16", "--max-length", "512")


def call(*arguments: str | Path) -> dict[str, object]:
    """The JSON object that a `replaceme` command prints."""
    done = subprocess.run(
        [REPLACEME, *arguments, "--json"], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


def perplexity(model: Path, text: Path) -> float:
    return float(str(call("evaluate", model, "--text", text, *MEASURE)["perplexity"]))


def one(
    model: Path, out: Path, *, method: str, ratio: float, dtype: str | None, options: argparse.Namespace
) -> dict[str, object]:
    size = ["--samples", str(options.samples), "--max-length", str(options.max_length)]
    base: list[str | Path] = ["compress", model, "--out", out, "--ratio", str(ratio), "--method", method, *size]
    if dtype is not None:
        base += ["--dtype", dtype]
    if options.wikitext is None:
        report = call(*base, "--calibration", "builtin:pydoc-topics")
        before, after = report["before"], report["after"]
        assert isinstance(before, dict)
        assert isinstance(after, dict)
        dense, pruned = float(before["perplexity"]), float(after["perplexity"])
    else:
        with tempfile.TemporaryDirectory() as scratch:
            fit, measure = Path(scratch) / "fit.txt", Path(scratch) / "measure.txt"
            first, last = split(options.wikitext.read_text(encoding="utf-8"))
            fit.write_text(detokenise(first), encoding="utf-8")
            measure.write_text(detokenise(last), encoding="utf-8")
            report = call(*base, "--calibration", fit, "--no-evaluate")
            dense, pruned = perplexity(model, measure), perplexity(out, measure)
    return {
        "method": method,
        "ratio": ratio,
        "dtype": dtype,
        "removed_blocks": report["removed_blocks"],
        "dense_perplexity": dense,
        "perplexity": pruned,
        "times_dense": pruned / dense,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--wikitext", type=Path)
    parser.add_argument("--methods", nargs="+", default=["least_squares", "drop"])
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.25])
    parser.add_argument("--dtypes", nargs="+", default=[None], help="to calibrate in; the machine's own by default")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    model = options.model or provide(Path("data/smollm2"))
    rows = []
    print("| method | ratio | dtype | blocks removed | perplexity | times dense |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        for ratio in options.ratios:
            for method in options.methods:
                for dtype in options.dtypes:
                    out = Path(scratch) / f"{method}-{ratio}-{dtype}"
                    row = one(model, out, method=method, ratio=ratio, dtype=dtype, options=options)
                    rows.append(row)
                    removed = ", ".join(map(str, row["removed_blocks"]))  # type: ignore[call-overload]
                    print(
                        f"| {method} | {ratio} | {dtype or ''} | {removed} | {row['perplexity']:.2f} "
                        f"| {row['times_dense']:.2f} |",
                        flush=True,
                    )
    print(f"\ndense: {rows[0]['dense_perplexity']:.2f}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
