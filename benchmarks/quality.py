"""Quality after compression, for each method and ratio, on text and questions that calibration did not use.

    python -m benchmarks.quality [--model DIR] [--wikitext FILE] [--calibration FILE] [--methods refit drop ...]
                                 [--ratios 0.125 0.25 0.375 0.5] [--choices FILE.jsonl ...] [--words FILE.jsonl ...]

With `--wikitext`, the first 60 % of that text (or the text of `--calibration`) calibrates, and perplexity is measured
on 16 x 512 tokens of the rest, without overlap. Without it, the built-in text serves for both; the pipeline splits it.
`--choices` and `--words` are files for `benchmarks.questions`. The dense model runs once for each dtype; its
activations are cached for all methods and ratios.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.smollm2 import provide
from benchmarks.wikitext import detokenise, split

REPLACEME = Path(sys.executable).with_name("replaceme")
MEASURE = ("--samples", "16", "--max-length", "512")
ONE_TEXT = ("--self-generated", "0")
VARIANTS: dict[str, tuple[str, ...]] = {
    "default": (),
    "as_published": ("--method", "least_squares", "--as-published"),
    "refit-window": ("--method", "refit", "--selection", "window"),
    "least_squares-2": ("--method", "least_squares", "--groups", "2"),
}
"""Names for a method with options; any other name is a method with its defaults. All but `default`, which leaves
everything open, calibrate on the one text alone."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One pruned model. `questions`: accuracy, or perplexity of the last word, by file."""

    method: str
    ratio: float
    dtype: str | None
    removed_blocks: list[int]
    dense_perplexity: float
    perplexity: float
    seconds: float
    questions: dict[str, float] = field(default_factory=dict)

    @property
    def times_dense(self) -> float:
        return self.perplexity / self.dense_perplexity


def call(*arguments: str | Path) -> dict[str, object]:
    """The JSON object that a `replaceme` command prints."""
    done = subprocess.run([REPLACEME, *arguments, "--json"], capture_output=True)
    if done.returncode != 0:
        raise SystemExit(f"replaceme {' '.join(map(str, arguments))} failed:\n{done.stderr.decode()[-2000:]}")
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


def perplexity(model: Path, text: Path) -> float:
    return float(str(call("evaluate", model, "--text", text, *MEASURE)["perplexity"]))


@dataclass(frozen=True, kw_only=True)
class Bench:
    """The texts of a run, as files under `scratch`, and the questions for every model."""

    model: Path
    scratch: Path
    calibration: str
    measure: Path | None
    size: tuple[str, ...]
    questions: tuple[str, ...]

    def run(self, method: str, ratio: float, dtype: str | None, *, dense: float | None) -> Row:
        out = self.scratch / f"{method}-{ratio}-{dtype}"
        how = VARIANTS.get(method, ("--method", method))
        how += () if method == "default" else ONE_TEXT
        base: list[str | Path] = ["compress", self.model, "--out", out, "--ratio", str(ratio), *how, *self.size]
        base += ["--calibration", self.calibration, "--cache", self.scratch / "cache"]
        base += [] if dtype is None else ["--dtype", dtype]
        report = call(*base, *(() if self.measure is None else ("--no-evaluate",)))
        if self.measure is None:
            before, after = report["before"], report["after"]
            assert isinstance(before, dict)
            assert isinstance(after, dict)
            dense, pruned = float(before["perplexity"]), float(after["perplexity"])
        else:
            assert dense is not None
            pruned = perplexity(out, self.measure)
        removed, stages = report["removed_blocks"], report["stages"]
        assert isinstance(removed, list)
        assert isinstance(stages, list)
        return Row(
            method=method,
            ratio=ratio,
            dtype=dtype,
            removed_blocks=removed,
            dense_perplexity=dense,
            perplexity=pruned,
            seconds=sum(stage["seconds"] for stage in stages),
            questions=self.ask(out),
        )

    def ask(self, model: Path) -> dict[str, float]:
        """Accuracy or last-word perplexity of `model`, by file of questions."""
        if not self.questions:
            return {}
        answers = self.scratch / "answers.json"
        command = [sys.executable, "-m", "benchmarks.questions", model, *self.questions, "--json", answers]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return {
            one["file"]: one["accuracy" if "chance" in one else "perplexity"] for one in json.loads(answers.read_text())
        }


def prepare(options: argparse.Namespace, scratch: Path) -> Bench:
    calibration, measure = options.calibration or "builtin:pydoc-topics", None
    if options.wikitext is not None:
        first, last = split(options.wikitext.read_text(encoding="utf-8"))
        measure = scratch / "measure.txt"
        measure.write_text(detokenise(last), encoding="utf-8")
        if options.calibration is None:
            calibration = str(scratch / "fit.txt")
            Path(calibration).write_text(detokenise(first), encoding="utf-8")
    questions = [*(("--choices", *options.choices) if options.choices else ())]
    questions += ["--words", *options.words] if options.words else []
    return Bench(
        model=options.model or provide(Path("data/smollm2")),
        scratch=scratch,
        calibration=calibration,
        measure=measure,
        size=("--samples", str(options.samples), "--max-length", str(options.max_length)),
        questions=tuple(map(str, questions)),
    )


def print_row(row: Row, *, dense: dict[str, float]) -> None:
    removed = ", ".join(map(str, row.removed_blocks))
    asked = "".join(f" | {value:.3g} ({value / dense[file]:.2f} x)" for file, value in row.questions.items())
    print(
        f"| {row.method} | {row.ratio} | {row.dtype or ''} | {removed} | {row.perplexity:.2f} "
        f"| {row.times_dense:.2f}{asked} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="model directory (default: SmolLM2-135M-Instruct from its wheel)")
    parser.add_argument("--wikitext", type=Path, help="raw WikiText, with word-level tokens")
    parser.add_argument("--calibration", help="builtin:NAME or a file, in place of the first part of --wikitext")
    parser.add_argument("--methods", nargs="+", default=["least_squares", "drop"], help=f"also {', '.join(VARIANTS)}")
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.25])
    parser.add_argument(
        "--dtypes", nargs="+", default=[None], help="dtypes of the calibration (default: that of the device)"
    )
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--choices", nargs="+", type=Path, help="multiple-choice questions")
    parser.add_argument("--words", nargs="+", type=Path, help="texts whose last word is to be predicted")
    parser.add_argument("--json", type=Path, help="write the result to this file, too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        bench = prepare(options, Path(directory))
        dense = None if bench.measure is None else perplexity(bench.model, bench.measure)
        answers = bench.ask(bench.model)
        head = ["method", "ratio", "dtype", "removed blocks", "perplexity", "times dense", *answers]
        print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}", flush=True)
        rows = []
        for ratio in options.ratios:
            for method in options.methods:
                for dtype in options.dtypes:
                    rows.append(bench.run(method, ratio, dtype, dense=dense))
                    print_row(rows[-1], dense=answers)
    print(f"\nperplexity of the dense model: {rows[0].dense_perplexity:.2f}; {answers or 'no questions'}")
    if options.json:
        table = [{**asdict(row), "times_dense": row.times_dense} for row in rows]
        options.json.write_text(json.dumps({"dense_questions": answers, "rows": table}, indent=2) + "\n")


if __name__ == "__main__":
    main()
