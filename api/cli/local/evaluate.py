"""`evaluate`: measure models on this machine, side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from api.cli.failure import failure_of, read_settings
from api.cli.job_request import parse_tasks, parse_text, with_job_options
from api.cli.local.shared import MODEL_HELP, CacheDirectory, Device, TasksDirectory, shown_progress
from api.cli.output.console import JsonFlag, make_console, print_json, print_note
from api.cli.output.report import models_table
from replaceme_core.errors import ReplaceMeError
from replaceme_core.local.evaluate import evaluate as evaluate_here
from replaceme_core.local.outcome import EvaluatedModel

_FIRST_FIELDS = ("perplexity", "tokens", "parameters", "bytes", "tokens_per_second", "dtype")


def evaluate(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help=f"Models, each {MODEL_HELP}.")],
    *,
    text: Annotated[
        str,
        typer.Option(
            metavar="FILE|NAME",
            help="Text to measure on: a .txt or .jsonl file, a built-in text, or org/name, a data set on the Hub, of "
            "which the split test is read. With options it is written as JSON: "
            '\'{"dataset": "org/name", "config": "...", "split": "validation"}\'.',
        ),
    ] = "builtin:general",
    samples: Annotated[int, typer.Option(min=1, max=100_000, help="Number of sequences.")] = 16,
    max_length: Annotated[
        int | None, typer.Option(min=8, max=131_072, help="Tokens per sequence. Default: 512.")
    ] = None,
    tasks_dir: TasksDirectory = None,
    device: Device = None,
    cache: CacheDirectory = None,
    as_json: JsonFlag = False,
    **options: Any,
) -> None:
    try:
        with shown_progress() as show:
            found = evaluate_here(
                models,
                text=parse_text(text),
                samples=samples,
                max_length=max_length,
                tasks_directory=tasks_dir,
                device=device,
                cache=cache,
                **options | {"tasks": parse_tasks(options["tasks"])},
                settings=read_settings(),
                on_progress=show,
            )
    except ReplaceMeError as error:
        raise failure_of(error, as_json=as_json) from error
    rows = [one.report for one in found.models]
    if as_json:
        machine = {"hardware": found.hardware, "threads": found.threads, "text": found.text}
        named = [{**_named(one), **_in_order(one.report)} for one in found.models]
        print_json({**_in_order(rows[0]), **machine} if len(rows) == 1 else {"models": named, **machine})
        return
    make_console(stderr=False).print(models_table(_short_names(models), rows))
    print_note(f"on {found.text}; speed on {found.hardware} (threads: {found.threads}), one sequence at a time,")
    print_note("median (slowest-fastest run)")


_OF_A_JOB = ("evaluation.tasks", "evaluation.task_limit", "evaluation.few_shot", "compute.dtype", "compute.threads")
with_job_options(evaluate, only=_OF_A_JOB)


def _in_order(row: Mapping[str, object]) -> Mapping[str, object]:
    return {**{name: row.get(name) for name in _FIRST_FIELDS}, **row}


def _named(one: EvaluatedModel) -> dict[str, object]:
    return {"model": one.name, **({} if one.revision is None else {"revision": one.revision})}


def _short_names(models: Sequence[str]) -> list[str]:
    """The last parts of the paths, where these are different: a whole path takes the column of a table apart."""
    names = [Path(model).resolve().name for model in models]
    return names if len(set(names)) == len(names) else list(models)
