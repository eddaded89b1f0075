"""Checks that no fitted map is worse than plain removal: all windows of given lengths, with each method and `drop`.

    python -m benchmarks.windows --wikitext FILE [--model DIR] [--methods least_squares cosine refit] [--lengths 8]
                                 [--starts 1 12 ...] [--dtype float32] [--json FILE]

The first 60 % of the text calibrate (64 x 512 tokens); perplexity is measured on 16 x 512 tokens of the rest. One dense
pass serves all windows. The result of a method is applied to the live model in the dtype of that pass, so that a window
takes seconds; `benchmarks.quality` measures saved models instead. The exit status is 1 if any fit is worse.
"""

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from benchmarks.smollm2 import provide
from benchmarks.wikitext import detokenise, split
from replaceme_core.engine.activations.capture import Activations
from replaceme_core.engine.activations.tensor_store import FileStore
from replaceme_core.engine.methods.task import Pruning, Task, find_method
from replaceme_core.engine.model.block_runner import BlockRunner, scale_output, summed_loss
from replaceme_core.engine.model.changes import Variant, try_changes
from replaceme_core.engine.model.device import make_deterministic, this_machine
from replaceme_core.engine.model.load import load_config, load_model, load_tokenizer
from replaceme_core.engine.text.documents import documents
from replaceme_core.engine.text.tokens import calibration_tokens, encode, pack
from replaceme_core.families.resolve import resolve
from replaceme_core.request.calibration import CalibrationSpec
from replaceme_core.request.method import Method, MethodSpec
from replaceme_core.request.resolve import resolve_spec
from replaceme_core.request.spec import CompressionSpec, ComputeSpec, EvaluationSpec, ModelRef
from replaceme_core.runner.messages import Progress

LENGTH, MEASURED = 512, 16


@dataclass(frozen=True, kw_only=True)
class Row:
    """Perplexities after the removal of one window, without a map and with each method."""

    start: int
    end: int
    drop: float
    methods: dict[str, float]

    @property
    def worst(self) -> float:
        """The greatest ratio of a method's perplexity to that of plain removal."""
        return max(value / self.drop for value in self.methods.values())


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A task without named blocks, and the `tokens` (sequences, positions) for measuring perplexity."""

    task: Task
    tokens: torch.Tensor

    def perplexity(self, pruning: Pruning) -> float:
        """Perplexity of the live model with `pruning` applied; the model is restored afterwards."""
        block_runner = self.task.block_runner
        folds = tuple(pruning.folds)
        variant = Variant(removed=frozenset(pruning.removed), folds=folds)
        parts = self.tokens.split(self.task.spec.compute.batch_size)
        with (
            try_changes(block_runner.blocks) as put,
            scale_output(block_runner.resolved.final_norm, pruning.final_scale),
        ):
            for change in pruning.changes:
                put(change)
            losses = [
                summed_loss(block_runner, variant.run(block_runner, block_runner.enter(part), since=0), part)
                for part in parts
            ]
        return math.exp(sum(losses) / block_runner.judged(self.tokens))

    def run(self, window: Sequence[int], methods: Sequence[Method]) -> Row:
        """Measure the removal of one window with each method."""
        found = {}
        for method in methods:
            spec = self.task.spec.model_copy(update={"drop": tuple(window), "method": MethodSpec(name=method)})
            task = replace(self.task, spec=spec, remove=len(window))
            found[str(method)] = self.perplexity(find_method(method)(task))
        return Row(
            start=window[0],
            end=window[-1],
            drop=self.perplexity(Pruning(removed=window)),
            methods=found,
        )


def prepare(options: argparse.Namespace, *, streams: Path) -> Bench:
    """Load the model and the tokens; what is stored of the dense pass is in the directory `streams`."""
    model: Path = options.model or provide(Path("data/smollm2"))
    spec = resolve_spec(
        CompressionSpec(
            model=ModelRef(repo_id="local/model"),
            ratio=0.25,
            calibration=CalibrationSpec(
                dataset="file:fit.txt", samples=options.samples, max_length=LENGTH, self_generated=0.0
            ),
            compute=ComputeSpec(dtype=options.dtype),
            evaluation=EvaluationSpec(enabled=False),
        ),
        this_machine(None),
        values=0,
    )
    dtype, tokenizer = make_deterministic(spec.compute), load_tokenizer(model)
    first, last = split(options.wikitext.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as directory:
        fit, measure = Path(directory, "fit.txt"), Path(directory, "measure.txt")
        fit.write_text(detokenise(first), encoding="utf-8")
        measure.write_text(detokenise(last), encoding="utf-8")
        tokens = calibration_tokens(spec, tokenizer, paths=[fit], vocabulary=load_config(model).vocab_size)
        encoded = encode(documents(spec.calibration.mix[0], measure), tokenizer, running_text=True)
        measured = pack(encoded, tokenizer, length=LENGTH, limit=MEASURED).sequences
    block_runner = BlockRunner(resolved=resolve(load_model(model, dtype=dtype, device=spec.compute.device)))
    activations = Activations(
        block_runner=block_runner,
        text=tokens,
        batch_size=spec.compute.batch_size,
        advance=lambda _: None,
        make_store=lambda: FileStore(directory=streams),
        always_store=True,
    )
    task = Task(
        block_runner=block_runner,
        tokens=tokens,
        activations=activations,
        spec=spec,
        remove=0,
        progress=Progress(lambda message: None),
    )
    return Bench(task=task, tokens=measured.to(spec.compute.device))


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wikitext", type=Path, required=True, help="raw WikiText, with word-level tokens")
    parser.add_argument("--model", type=Path, help="model directory (default: SmolLM2-135M-Instruct from its wheel)")
    parser.add_argument(
        "--methods", nargs="+", type=Method, default=[Method.LEAST_SQUARES, Method.COSINE, Method.REFIT]
    )
    parser.add_argument("--lengths", nargs="+", type=int, default=[8], help="of the windows, in blocks (default: 8)")
    parser.add_argument("--starts", nargs="+", type=int, help="first blocks of the windows (default: all)")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--dtype", help="default: that of the device")
    parser.add_argument("--json", type=Path, help="write the result to this file, too")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as streams:
        bench = prepare(options, streams=Path(streams))
        blocks = len(bench.task.block_runner.blocks)
        print(f"| blocks | drop | {' | '.join(options.methods)} |\n|{'---|' * (2 + len(options.methods))}", flush=True)
        for length in options.lengths:
            for start in options.starts or range(1, blocks - length + 1):
                rows.append(bench.run(range(start, start + length), options.methods))
                values = " | ".join(f"{value:.2f}" for value in rows[-1].methods.values())
                print(f"| {rows[-1].start}-{rows[-1].end} | {rows[-1].drop:.2f} | {values} |", flush=True)
    worst = max(row.worst for row in rows)
    print(f"\n{len(rows)} windows; the greatest ratio of a fit to plain removal is {worst:.3f}")
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    sys.exit(int(worst > 1))


if __name__ == "__main__":
    main()
