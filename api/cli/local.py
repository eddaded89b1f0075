"""`compress`, `evaluate`, `ask`, `reproduce`: the calls of `replaceme_core.local` as commands."""

import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from api.cli.exit_codes import ExitCode, handled
from api.cli.job_request import NOT_OF_A_RUN_HERE, SEVERAL, parse_tasks, parse_text, request_body, with_job_options
from api.cli.output.ci import Ended, Junit, write_for_pipeline
from api.cli.output.console import JsonFlag, make_console, print_json, print_note, progress_display
from api.cli.output.report import differences_table, models_table, print_asked, print_report, print_warnings
from replaceme_core.local.compress import Outcome
from replaceme_core.local.compress import compress as compress_here
from replaceme_core.local.evaluate import EvaluatedModel
from replaceme_core.local.evaluate import ask as ask_here
from replaceme_core.local.evaluate import evaluate as evaluate_here
from replaceme_core.local.reproduce import heal as heal_here
from replaceme_core.local.reproduce import reproduce as reproduce_here
from replaceme_core.local.run import ShowProgress
from replaceme_core.report.reading import Report

_MOST_SHOWN = 20
MODEL_HELP = "a directory as save_pretrained writes it, or org/name on the Hub, also org/name@revision"
CacheDirectory = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        file_okay=False,
        help="Directory for what the dense model has computed, for later runs on the same model and text.",
    ),
]
Device = Annotated[str | None, typer.Option(help="Device such as cpu, cuda or cuda:1. Default: the fastest available.")]
RecordedDevice = Annotated[
    str | None, typer.Option(help="Device such as cpu, cuda or cuda:1. Default: that of the result.")
]
TasksDirectory = Annotated[
    Path | None,
    typer.Option(
        "--tasks-dir",
        exists=True,
        file_okay=False,
        help="Directory with the data of the tasks, as org/name, and with YAML files of tasks of your own.",
    ),
]

ResultName = Annotated[
    str, typer.Argument(metavar="REPO|DIR", help="A result: a repository on the Hub, or a directory.")
]
ResultRevision = Annotated[str | None, typer.Option(help="Revision of the result. Default: the newest.")]
TextFiles = Annotated[
    list[Path] | None,
    typer.Option(help="Calibration text that was a file. Repeatable, in the order of the calibration."),
]


@contextmanager
def shown_run() -> Iterator[ShowProgress]:
    """Show progress on standard error. SIGTERM is handled like Ctrl-C: the runner ends, temporary files are removed.

    So is the end of the terminal.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:  # a terminal that closes sends it twice
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    with (
        handled(interrupt, signal.SIGTERM, signal.SIGHUP),
        progress_display(make_console(stderr=True)) as show,
    ):
        yield show


_OF_HEALING = tuple(f"heal.{name}" for name in ("dataset", "learning_rate", "time_budget_seconds", "weights"))
_JSON_FIELDS = ("removed_blocks", "kept_blocks", "method", "candidates", "stages", "before", "after", "warnings")


@with_job_options(without=NOT_OF_A_RUN_HERE)
def compress(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=f"The model: {MODEL_HELP}.")],
    *,
    out: Annotated[Path, typer.Option(help="Directory for the result; must not exist.")],
    calibration: Annotated[
        list[str],
        typer.Option(
            metavar="NAME[=SHARE]",
            help="Calibration text: builtin:general or another built-in text, a .txt or .jsonl file, or a data set "
            f"on the Hub as org/name; for a model of images a directory or a data set of images. {SEVERAL}",
        ),
    ],
    tasks_dir: TasksDirectory = None,
    junit: Junit = None,
    device: Device = None,
    cache: CacheDirectory = None,
    as_json: JsonFlag = False,
    **options: Any,
) -> None:
    body: dict[str, Any] = request_body({**options, "calibration": calibration, "device": device})
    with shown_run() as show:
        outcome = compress_here(
            model,
            out=out,
            **body,
            tasks_directory=tasks_dir,
            cache=cache,
            on_progress=show,
        )
    write_for_pipeline(Ended.of_run(outcome, model=model), junit=junit)
    _print_outcome(outcome, as_json=as_json)
    if outcome.rejection is not None:
        print_note(f"error: {outcome.rejection}; the result is kept in {out}")
        raise typer.Exit(int(ExitCode.GATE_REJECTED))


def _print_outcome(outcome: Outcome, *, as_json: bool) -> None:
    warnings = [one.model_dump() for one in outcome.warnings]
    if as_json:
        found = {**outcome.report, "warnings": warnings}
        more = [name for name in ("gate", "healing") if outcome.report.get(name) is not None]
        print_json({name: found.get(name) for name in (*_JSON_FIELDS, *more)})
    else:
        console = make_console(stderr=False)
        print_report(console, Report(outcome.report))
        console.print(f"written to {outcome.directory}")
        print_note(f"load it with {outcome.report['auto_class']}.from_pretrained")
    print_warnings(make_console(stderr=True), Report({"warnings": warnings}))


def ask(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=f"The model: {MODEL_HELP}.")],
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="What to ask.")],
    *,
    beside: Annotated[
        list[str] | None, typer.Option(metavar="MODEL", help="Another model to ask, such as the original. Repeatable.")
    ] = None,
    new_tokens: Annotated[int, typer.Option("--tokens", min=1, max=4096, help="Tokens of an answer, at most.")] = 128,
    device: Device = None,
    as_json: JsonFlag = False,
) -> None:
    with shown_run() as show:
        found = ask_here([model, *(beside or ())], prompts, new_tokens=new_tokens, device=device, on_progress=show)
    if as_json:
        print_json({"answers": [asdict(one) for one in found]})
        return
    print_asked(make_console(stderr=False), [(one.prompt, one.model, one.text) for one in found])


_FIRST_FIELDS = ("perplexity", "tokens", "parameters", "bytes", "tokens_per_second", "dtype")
_OF_A_JOB = ("evaluation.tasks", "evaluation.task_limit", "evaluation.few_shot", "compute.dtype", "compute.threads")


@with_job_options(only=_OF_A_JOB)
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
        int | None,
        typer.Option(min=8, max=131_072, help="Tokens per sequence. Default: 512, or what the models can read."),
    ] = None,
    tasks_dir: TasksDirectory = None,
    device: Device = None,
    cache: CacheDirectory = None,
    as_json: JsonFlag = False,
    **options: Any,
) -> None:
    with shown_run() as show:
        found = evaluate_here(
            models,
            text=parse_text(text),
            samples=samples,
            max_length=max_length,
            tasks_directory=tasks_dir,
            device=device,
            cache=cache,
            **options | {"tasks": parse_tasks(options["tasks"])},
            on_progress=show,
        )
    rows = [one.report for one in found.models]
    if as_json:
        machine = {"hardware": found.hardware, "threads": found.threads, "text": found.text}
        named = [{**_named(one), **_in_order(one.report)} for one in found.models]
        print_json({**_in_order(rows[0]), **machine} if len(rows) == 1 else {"models": named, **machine})
        return
    make_console(stderr=False).print(models_table(_short_names(models), rows))
    print_note(f"on {found.text}; speed on {found.hardware} (threads: {found.threads}), one sequence at a time,")
    print_note("median (slowest-fastest run)")


def _in_order(row: Mapping[str, object]) -> Mapping[str, object]:
    return {**{name: row.get(name) for name in _FIRST_FIELDS}, **row}


def _named(one: EvaluatedModel) -> dict[str, object]:
    return {"model": one.name, **({} if one.revision is None else {"revision": one.revision})}


def _short_names(models: Sequence[str]) -> list[str]:
    """The last parts of the paths, where these are different: a whole path takes the column of a table apart."""
    names = [Path(model).resolve().name for model in models]
    return names if len(set(names)) == len(names) else list(models)


@with_job_options(only=_OF_HEALING)
def heal(
    result: ResultName,
    *,
    out: Annotated[Path, typer.Option(help="Directory for the trained model; must not exist.")],
    heal_tokens: Annotated[int, typer.Option("--heal-tokens", min=1, help="Number of tokens to train on.")],
    teacher: Annotated[
        Path | None, typer.Option(help="Directory of the original model. Default: the recorded revision on the Hub.")
    ] = None,
    text: TextFiles = None,
    revision: ResultRevision = None,
    device: RecordedDevice = None,
    as_json: JsonFlag = False,
    **options: Any,
) -> None:
    body = request_body({**options, "heal_tokens": heal_tokens})
    with shown_run() as show:
        outcome = heal_here(
            result,
            out=out,
            heal=body["heal"],  # type: ignore[arg-type]
            teacher=teacher,
            texts=text or (),
            revision=revision,
            device=device,
            on_progress=show,
        )
    _print_outcome(outcome, as_json=as_json)


def reproduce(
    result: ResultName,
    *,
    out: Annotated[Path | None, typer.Option(help="Keep what comes out in this directory; must not exist.")] = None,
    model: Annotated[
        Path | None, typer.Option(help="Directory of the original model. Default: the recorded revision on the Hub.")
    ] = None,
    text: TextFiles = None,
    revision: ResultRevision = None,
    device: RecordedDevice = None,
    as_json: JsonFlag = False,
) -> None:
    with shown_run() as show:
        found = reproduce_here(
            result,
            out=out,
            model=model,
            texts=text or (),
            revision=revision,
            device=device,
            on_warning=lambda warning: print_note(f"warning: {warning}"),
            on_progress=show,
        )
    if as_json:
        print_json({**found.comparison, "warnings": [*found.warnings]})
    else:
        _print_comparison(found.comparison)
    raise typer.Exit(int(ExitCode.SUCCEEDED if found.comparison["same"] else ExitCode.DIFFERENT))


def _print_comparison(comparison: Mapping[str, object]) -> None:
    console = make_console(stderr=False)
    if comparison["same"]:
        console.print(f"the same bytes: all {comparison['tensors']} tensors")
        return
    console.print(f"{comparison['differing_tensors']} of {comparison['tensors']} tensors differ")
    differing = comparison["differing"]
    assert isinstance(differing, list)
    console.print(differences_table(differing[:_MOST_SHOWN]))
    if len(differing) > _MOST_SHOWN:
        console.print(f"and {len(differing) - _MOST_SHOWN} more; --json lists them")
