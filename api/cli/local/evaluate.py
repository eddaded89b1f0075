"""`evaluate`: measure models on this machine, side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from api.cli.failure import failure_of, read_settings
from api.cli.local.options import Device, DtypeOption, Threads
from api.cli.local.requests import validated
from api.cli.local.requirements import admit_model, find_confinement, find_runner
from api.cli.local.run import run
from api.cli.options.checks import check_text
from api.cli.options.tasks import FewShot, TaskLimit, Tasks, TasksDirectory, parse_tasks
from api.cli.output.console import JsonFlag, make_console, print_json, print_note
from api.cli.output.models import models_table
from replaceme_core.errors import InvalidInput, ReplaceMeError
from replaceme_core.fields import BUILTIN_PREFIX, BUILTIN_TEXTS
from replaceme_core.runner.messages import Evaluated, EvaluateRequest, Stage
from replaceme_core.runner.process import EVALUATE_FLAG

_FIRST_FIELDS = ("perplexity", "tokens", "parameters", "bytes", "tokens_per_second", "dtype")


def evaluate(
    models: Annotated[
        list[Path],
        typer.Argument(metavar="MODEL_DIR...", help="Directories of models, as save_pretrained writes them."),
    ],
    *,
    text: Annotated[
        str, typer.Option(metavar="FILE|NAME", help="Text to measure on: a .txt or .jsonl file, or a built-in text.")
    ] = "builtin:general",
    samples: Annotated[int, typer.Option(min=1, max=100_000, help="Number of sequences.")] = 16,
    max_length: Annotated[
        int | None, typer.Option(min=8, max=131_072, help="Tokens per sequence. Default: 512.")
    ] = None,
    tasks: Tasks = None,
    tasks_dir: TasksDirectory = None,
    task_limit: TaskLimit = None,
    few_shot: FewShot = None,
    device: Device = None,
    dtype: DtypeOption = None,
    threads: Threads = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure perplexity, size and speed of one model, or of several beside each other."""
    try:
        settings = read_settings()
        runner = find_runner(settings, command="evaluate")
        confinement = find_confinement(settings)
        path = _text_file(text)
        for model in models:
            admit_model(model)
        first, *others = (str(model.resolve()) for model in models)
        request = validated(
            EvaluateRequest,
            {
                "model_directory": first,
                "others": tuple(others),
                "text_path": None if path is None else str(path.resolve()),
                "builtin": text if path is None else None,
                "samples": samples,
                "max_length": max_length,
                "device": device,
                "dtype": dtype,
                "threads": threads,
                "tasks": parse_tasks(tasks),
                "tasks_directory": None if tasks_dir is None else str(tasks_dir.resolve()),
                "task_limit": task_limit,
                "few_shot": few_shot,
            },
        )
    except ReplaceMeError as error:
        raise failure_of(error, as_json=as_json) from error
    evaluated = run(
        (*runner, EVALUATE_FLAG), request, confinement=confinement, weights={Stage.EVALUATE: 1}, as_json=as_json
    )
    assert isinstance(evaluated, Evaluated)
    report = evaluated.report
    found = report["models"]
    assert isinstance(found, list)
    machine = {name: report.get(name) for name in ("hardware", "threads")}
    if as_json:
        rows = [{**{name: one.get(name) for name in _FIRST_FIELDS}, **one} for one in found]
        named = [{"model": str(model), **row} for model, row in zip(models, rows, strict=True)]
        print_json(
            {**rows[0], **machine, "text": text} if len(rows) == 1 else {"models": named, **machine, "text": text}
        )
        return
    make_console(stderr=False).print(models_table(_short_names(models), found))
    print_note(f"on {text}; speed on {machine['hardware']} (threads: {machine['threads']}), one sequence at a time,")
    print_note("median (slowest-fastest run)")


def _text_file(text: str) -> Path | None:
    """`None` for a built-in text. Raises `InvalidInput`."""
    if text in BUILTIN_TEXTS:
        return None
    if text.startswith(BUILTIN_PREFIX):
        known = ", ".join(BUILTIN_TEXTS)
        raise InvalidInput(f"there is no built-in text {text!r}; available: {known}", field="text", value=text)
    path = Path(text).expanduser()
    check_text(path, field="text")
    return path


def _short_names(models: Sequence[Path]) -> list[str]:
    """The last parts of the paths, where these are different: a whole path takes the column of a table apart."""
    names = [model.resolve().name for model in models]
    return names if len(set(names)) == len(names) else [str(model) for model in models]
