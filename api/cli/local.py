"""`compress` and `evaluate`: the pipeline here and now, with no service, in the same runner as the worker's."""

import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from api.cli import method as options
from api.cli.calibration import MaxLength, Samples, SelfGenerated, find_calibration
from api.cli.checks import check_text, finite
from api.cli.console import Failure, make_console, print_json, read_settings, say
from api.cli.exits import ExitCode, exit_code_of
from api.cli.run_locally import run
from api.cli.service import Json, parse_drop
from api.cli.tables import before_after_table, candidates_table, measurement_table
from api.http.validation import problems
from replaceme_core.admission.model_config import ModelOutline, admit_config, admit_files
from replaceme_core.admission.removal import block_ranges, check_removal
from replaceme_core.errors import BrokenModel, InvalidInput, ReplaceMeError
from replaceme_core.runner.eta import weights_of
from replaceme_core.runner.messages import Evaluated, EvaluateRequest, Finished, RunnerRequest, Stage
from replaceme_core.runner.process import EVALUATE_FLAG, RUNNER_COMMAND
from replaceme_core.spec import CompressionSpec, Loading, Method, Quantization

_COMPRESSED = ("removed_blocks", "kept_blocks", "method", "candidates", "stages", "before", "after")
_EVALUATED = ("perplexity", "tokens", "parameters", "bytes", "tokens_per_second", "dtype")


class Dtype(StrEnum):
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


ModelDirectory = Annotated[Path, typer.Argument(metavar="MODEL_DIR", help="A model as save_pretrained writes it.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...; the best there is by default.")]
DtypeOption = Annotated[Dtype | None, typer.Option(help="For the arithmetic; what the device is fast at by default.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads.")]


def register(app: typer.Typer) -> None:
    app.command("compress")(compress)
    app.command("evaluate")(evaluate)


def compress(
    model_dir: ModelDirectory,
    *,
    out: Annotated[Path, typer.Option(help="Where the result goes; must not exist.")],
    calibration: Annotated[str, typer.Option(help="builtin:pydoc-topics, or the path of a .txt or .jsonl file.")],
    ratio: Annotated[float | None, typer.Option(callback=finite, help="Fraction of the blocks to remove.")] = None,
    drop: Annotated[str | None, typer.Option(help="The blocks to remove instead: 12,13 or 12-19.")] = None,
    method: Annotated[
        Method,
        typer.Option(
            help="What goes, and what makes up for it; auto gives the best model and takes several times as long."
        ),
    ] = Method.LEAST_SQUARES,
    ridge: options.Ridge = None,
    replays: options.Replays = None,
    groups: options.Groups = None,
    loss: options.LossOption = None,
    structure: options.StructureOption = None,
    as_published: options.AsPublished = False,
    selection: options.SelectionOption = None,
    ridge_later: options.RidgeLater = None,
    time_budget: options.TimeBudget = None,
    samples: Samples = None,
    max_length: MaxLength = None,
    seed: Annotated[int, typer.Option(help="For the choice of the text.")] = 0,
    self_generated: SelfGenerated = None,
    evaluate: Annotated[bool, typer.Option("--evaluate/--no-evaluate", help="Measure before and after.")] = True,
    device: Device = None,
    dtype: DtypeOption = None,
    threads: Threads = None,
    batch_size: Annotated[int | None, typer.Option(help="Sequences at a time.")] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Keep what was captured here, for other ratios on the same model and text.")
    ] = None,
    loading: Annotated[Loading, typer.Option(help="The whole model at once, or block by block.")] = Loading.AUTO,
    quantization: Annotated[
        Quantization | None, typer.Option(help="Hold the blocks in fewer bits while activations are captured.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compress a model in a directory, here and now."""
    try:
        text = find_calibration(calibration)
        spec = make_spec(
            {
                "model": {"repo_id": f"local/{clean_name(model_dir)}"},
                "ratio": ratio,
                "drop": parse_drop(drop),
                "calibration": {
                    "dataset": calibration if text is None else f"file:{text.name}",
                    "samples": samples,
                    "max_length": max_length,
                    "seed": seed,
                    "self_generated": self_generated or 0.0,
                },
                "method": options.method_field(
                    method.value,
                    ridge=ridge,
                    replays=replays,
                    groups=groups,
                    loss=loss,
                    structure=structure,
                    as_published=as_published,
                    selection=selection,
                    ridge_later=ridge_later,
                    time_budget_seconds=time_budget,
                ),
                "evaluation": {"enabled": evaluate},
                "compute": {
                    "device": device,
                    "dtype": None if dtype is None else dtype.value,
                    "batch_size": batch_size,
                    "threads": threads,
                    "loading": loading.value,
                    "quantization": None if quantization is None else quantization.value,
                },
            }
        )
        outline = admit_directory(model_dir)
        check_removal(spec, outline)
        staging = make_staging(out)
    except ReplaceMeError as error:
        raise failure_of(error, as_json=as_json) from error
    try:
        request = RunnerRequest(
            spec=spec,
            model_directory=str(model_dir.resolve()),
            calibration_path=None if text is None else str(text.resolve()),
            output_directory=str(staging / "result"),
            cache_directory=None if cache is None else str(cache.resolve()),
            cache_bytes=read_settings().statistics_cache_bytes,
        )
        finished = run(runner_command(), request, weights=weights_of(spec), as_json=as_json)
        assert isinstance(finished, Finished)
        put_in_place(staging / "result", out, as_json=as_json)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    if as_json:
        print_json(compressed_json(finished))
    else:
        _print_compressed(finished, outline, out)


def evaluate(
    model_dir: ModelDirectory,
    *,
    text: Annotated[Path, typer.Option(help="The text to measure on: .txt or .jsonl.")],
    samples: Annotated[int, typer.Option(min=1, max=100_000, help="Sequences of text.")] = 16,
    max_length: Annotated[int | None, typer.Option(min=8, max=131_072, help="Tokens in a sequence.")] = None,
    device: Device = None,
    dtype: DtypeOption = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Measure perplexity, size and speed of a model in a directory."""
    try:
        check_text(text, field="text")
        admit_directory(model_dir)
        request = make_evaluate_request(
            {
                "model_directory": str(model_dir.resolve()),
                "text_path": str(text.resolve()),
                "samples": samples,
                "max_length": max_length,
                "device": device,
                "dtype": None if dtype is None else dtype.value,
                "threads": threads,
            }
        )
    except ReplaceMeError as error:
        raise failure_of(error, as_json=as_json) from error
    evaluated = run((*runner_command(), EVALUATE_FLAG), request, weights={Stage.EVALUATE: 1}, as_json=as_json)
    assert isinstance(evaluated, Evaluated)
    if as_json:
        print_json({key: evaluated.report.get(key) for key in _EVALUATED})
    else:
        make_console(stderr=False).print(measurement_table(evaluated.report))


def runner_command() -> tuple[str, ...]:
    """The same as the worker's."""
    return read_settings().runner_command or RUNNER_COMMAND


def failure_of(error: ReplaceMeError, *, as_json: bool) -> Failure:
    field = error.field if isinstance(error, InvalidInput) else None
    return Failure(error.message, exit_code_of(error.code), code=error.code, field=field, as_json=as_json)


def clean_name(directory: Path) -> str:
    """The directory's name as a repository may be called.

    >>> clean_name(Path("/models/my model (v2).git"))
    'my-model-v2'
    """
    name = re.sub(r"[^A-Za-z0-9_.]+", "-", directory.resolve().name.removesuffix(".git"))
    name = re.sub(r"([.-])[.-]+", r"\1", name)[:80].strip("._-")
    return name.removesuffix(".git").strip("._-") or "model"


def make_spec(sent: Mapping[str, object]) -> CompressionSpec:
    """Raises `InvalidInput` that names what is wrong first."""
    try:
        return CompressionSpec.model_validate(sent)
    except ValidationError as error:
        raise _first_problem(error, sent, CompressionSpec.model_json_schema()) from error


def make_evaluate_request(sent: Mapping[str, object]) -> EvaluateRequest:
    """Raises `InvalidInput` that names what is wrong first."""
    try:
        return EvaluateRequest.model_validate(sent)
    except ValidationError as error:
        raise _first_problem(error, sent, EvaluateRequest.model_json_schema()) from error


def _first_problem(error: ValidationError, sent: Mapping[str, object], schema: Mapping[str, object]) -> InvalidInput:
    first = problems(error.errors(), sent=sent, schema=schema)[0]
    return InvalidInput(f"{first['field']}: {first['message']}", field=first["field"], value=first["value"])


def admit_directory(directory: Path) -> ModelOutline:
    """What `plan` says about the model in `directory`. Raises `InvalidInput`, in time before torch is loaded."""
    config = directory / "config.json"
    if not config.is_file():
        what = "a model: it has no config.json" if directory.is_dir() else "a directory"
        raise InvalidInput(f"{directory} is not {what}", field="model", value=str(directory))
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BrokenModel(f"{config} cannot be read: {error}", field="model", value=str(config)) from error
    if not isinstance(content, dict):
        raise BrokenModel(f"{config} is not a JSON object", field="model", value=str(config))
    outline = admit_config(content)
    admit_files(tuple(path.name for path in directory.iterdir() if path.is_file()))
    return outline


def make_staging(out: Path) -> Path:
    """A directory beside `out`, on the same device, that vanishes whatever happens. Raises `InvalidInput`."""
    if out.exists() or out.is_symlink():
        raise InvalidInput(f"{out} exists already; name a new directory with --out", field="out", value=str(out))
    try:
        parent = out.absolute().parent
        parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=parent))
    except OSError as error:
        raise InvalidInput(f"{out} cannot be written: {error.strerror}", field="out", value=str(out)) from error


def put_in_place(result: Path, out: Path, *, as_json: bool) -> None:
    """One rename: `out` is complete or not there."""
    try:
        result.rename(out)
    except OSError as error:
        message = f"the result cannot be put at {out}: {error.strerror}"
        raise Failure(message, ExitCode.BAD_INPUT, code=InvalidInput.code, field="out", as_json=as_json) from error


def compressed_json(finished: Finished) -> dict[str, object]:
    """The object that `--json` prints: parts of `replaceme.json`."""
    blocks = {"removed_blocks": finished.removed_blocks, "kept_blocks": finished.kept_blocks}
    return {key: {**finished.report, **blocks}.get(key) for key in _COMPRESSED}


def _print_compressed(finished: Finished, outline: ModelOutline, out: Path) -> None:
    console = make_console(stderr=False)
    report, removed = finished.report, finished.removed_blocks
    console.print(f"removed {len(removed)} of {outline.blocks} blocks: {block_ranges(removed)}")
    candidates = report.get("candidates")
    if isinstance(candidates, list) and candidates:
        console.print(candidates_table(candidates))
    before, after = report.get("before"), report.get("after")
    if isinstance(before, dict) and isinstance(after, dict):
        console.print(before_after_table(before, after))
    console.print(f"written to {out}")
    say("load it with AutoModelForCausalLM.from_pretrained")
