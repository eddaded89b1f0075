"""`evaluate`: measure a model on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from api.cli.failure import failure_of, read_settings
from api.cli.local.options import Device, DtypeOption, ModelDirectory, Threads
from api.cli.local.requests import validated
from api.cli.local.requirements import admit_model, find_confinement, find_runner
from api.cli.local.run import run
from api.cli.options.checks import check_text
from api.cli.output.console import JsonFlag, make_console, print_json
from api.cli.output.tables import measurement_table
from replaceme_core.errors import ReplaceMeError
from replaceme_core.runner.messages import Evaluated, EvaluateRequest, Stage
from replaceme_core.runner.process import EVALUATE_FLAG

_JSON_FIELDS = ("perplexity", "tokens", "parameters", "bytes", "tokens_per_second", "dtype")


def evaluate(
    model_dir: ModelDirectory,
    *,
    text: Annotated[Path, typer.Option(help="Text to measure on: a .txt or .jsonl file.")],
    samples: Annotated[int, typer.Option(min=1, max=100_000, help="Number of sequences.")] = 16,
    max_length: Annotated[
        int | None, typer.Option(min=8, max=131_072, help="Tokens per sequence. Default: 512.")
    ] = None,
    device: Device = None,
    dtype: DtypeOption = None,
    threads: Threads = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure perplexity, size and speed of a model."""
    try:
        settings = read_settings()
        runner = find_runner(settings, command="evaluate")
        confinement = find_confinement(settings)
        check_text(text, field="text")
        admit_model(model_dir)
        request = validated(
            EvaluateRequest,
            {
                "model_directory": str(model_dir.resolve()),
                "text_path": str(text.resolve()),
                "samples": samples,
                "max_length": max_length,
                "device": device,
                "dtype": dtype,
                "threads": threads,
            },
        )
    except ReplaceMeError as error:
        raise failure_of(error, as_json=as_json) from error
    evaluated = run(
        (*runner, EVALUATE_FLAG), request, confinement=confinement, weights={Stage.EVALUATE: 1}, as_json=as_json
    )
    assert isinstance(evaluated, Evaluated)
    if as_json:
        print_json({name: evaluated.report.get(name) for name in _JSON_FIELDS})
    else:
        make_console(stderr=False).print(measurement_table(evaluated.report))
