"""`compress`: the call of `replaceme_core.local.compress` as a command."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from api.cli.exit_codes import ExitCode
from api.cli.failure import failure_of, read_settings
from api.cli.job_request import NOT_OF_A_RUN_HERE, SEVERAL, request_body, with_job_options
from api.cli.local.shared import MODEL_HELP, CacheDirectory, Device, TasksDirectory, shown_progress
from api.cli.output.ci import Ended, Junit, write_for_pipeline
from api.cli.output.console import JsonFlag, make_console, print_json, print_note
from api.cli.output.report import print_report, print_warnings
from replaceme_core.errors import GateRejected, ReplaceMeError
from replaceme_core.local.compress import compress as compress_here
from replaceme_core.local.outcome import Outcome
from replaceme_core.report.reading import Report

_JSON_FIELDS = ("removed_blocks", "kept_blocks", "method", "candidates", "stages", "before", "after", "warnings")


def compress(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=f"The model: {MODEL_HELP}.")],
    *,
    out: Annotated[Path, typer.Option(help="Directory for the result; must not exist.")],
    calibration: Annotated[
        list[str],
        typer.Option(
            metavar="NAME[=SHARE]",
            help="Calibration text: builtin:general or another built-in text, a .txt or .jsonl file, or a data set "
            f"on the Hub as org/name. {SEVERAL}",
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
    try:
        with shown_progress() as show:
            outcome = compress_here(
                model,
                out=out,
                **body,
                tasks_directory=tasks_dir,
                cache=cache,
                settings=read_settings(),
                on_progress=show,
            )
    except ReplaceMeError as error:
        raise failure_of(error, as_json=as_json) from error
    warnings = [asdict(one) for one in outcome.warnings]
    if as_json:
        found = {**_with_blocks(outcome), "warnings": warnings}
        fields = (*_JSON_FIELDS, "gate") if outcome.gate else _JSON_FIELDS
        print_json({name: found.get(name) for name in fields})
    else:
        _print_result(outcome)
    print_warnings(make_console(stderr=True), Report({"warnings": warnings}))
    write_for_pipeline(Ended.of_run(outcome, model=model, code=GateRejected.code), junit=junit)
    if outcome.rejection is not None:
        print_note(f"error: {outcome.rejection}; the result is kept in {out}")
        raise typer.Exit(int(ExitCode.GATE_REJECTED))


with_job_options(compress, without=NOT_OF_A_RUN_HERE)


def _print_result(outcome: Outcome) -> None:
    console = make_console(stderr=False)
    print_report(console, Report(_with_blocks(outcome)))
    console.print(f"written to {outcome.directory}")
    print_note("load it with AutoModelForCausalLM.from_pretrained")


def _with_blocks(outcome: Outcome) -> dict[str, object]:
    """The report with what is beside it in the outcome."""
    return {**outcome.report, "removed_blocks": outcome.removed_blocks, "kept_blocks": outcome.kept_blocks}
