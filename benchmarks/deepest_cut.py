"""Compares the search for the deepest cut with a compression for each depth: the same depth from fewer trials?

    python -m benchmarks.deepest_cut --text FILE.txt [--model DIR] [--most 0.5] [--limit 1.6] [--method least_squares]

The search is asked for the deepest cut that leaves at most `--limit` times the perplexity, of at most the fraction
`--most` of the blocks. Then each depth is compressed by itself, and measured on the same text; these share an
activation cache. The exit status is 1 where the depths differ, or where the search ran more dense blocks than a single
depth does.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.quality import ONE_TEXT, call
from benchmarks.smollm2 import provide


def ratio_of(report: dict[str, Any]) -> float:
    """How many times the perplexity of the original is left on the first text."""
    return float(report["after"]["perplexity"]) / float(report["before"]["perplexity"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--most", type=float, default=0.5)
    parser.add_argument("--limit", type=float, default=1.6)
    parser.add_argument("--method", default="least_squares")
    parser.add_argument("--samples", default="64")
    options = parser.parse_args()
    model = options.model or provide(Path("data/smollm2"))
    blocks = int(json.loads((model / "config.json").read_text())["num_hidden_layers"])
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)

        def compress(name: str, ratio: str, *more: str) -> dict[str, Any]:
            how = ("--method", options.method, *ONE_TEXT, "--samples", options.samples)
            base = ("compress", model, "--out", place / name, "--calibration", options.text, "--ratio", ratio)
            call(*base, *how, "--cache", place / f"cache-{name[0]}", *more)
            report: dict[str, Any] = json.loads((place / name / "replaceme.json").read_text(encoding="utf-8"))
            return report

        began = time.monotonic()
        gate = ("--gate", f"perplexity_ratio<={options.limit}")
        searched = compress("searched", f"max:{options.most}", *gate)
        seconds, found = time.monotonic() - began, len(searched["removed_blocks"])
        trials = {one["blocks"]: one["measured"]["perplexity_ratio"] for one in searched["gate"]["trials"]}
        print(f"search: {found} blocks after {len(trials)} trials, {seconds:.0f} s", flush=True)
        ran = searched["captured"]["dense_block_runs"]
        began, passing, once = time.monotonic(), 0, 0
        for depth in range(1, round(options.most * blocks) + 1):
            single = compress(f"by-{depth}", str(depth / blocks))
            left, once = ratio_of(single), max(once, single["captured"]["dense_block_runs"])
            passing = depth if left <= options.limit else passing
            seen = f", in the search {trials[depth]:.4f}" if depth in trials else ""
            print(f"{depth:3} blocks: {left:.4f} times the perplexity{seen}", flush=True)
        print(f"each depth by itself: {passing} blocks, {time.monotonic() - began:.0f} s")
        print(f"dense blocks run: {ran} in the search, {once} for one depth")
    sys.exit(found != passing or ran > once)


if __name__ == "__main__":
    main()
