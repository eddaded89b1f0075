"""`compress`: the call of `replaceme_core.local.compress` as a command."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from api.cli.exit_codes import ExitCode
from api.cli.failure import failure_of, read_settings
from api.cli.local.options import CacheDirectory, Device, DtypeOption, Model, Threads
from api.cli.local.shown import shown_progress
from api.cli.options import method as options
from api.cli.options.calibration import (
    SEVERAL,
    Column,
    Config,
    General,
    JudgedOn,
    MaxLength,
    Repeated,
    Revision,
    Samples,
    SelfGenerated,
    Split,
    calibration_field,
    parse_sources,
)
from api.cli.options.gate import Gate, parse_gate
from api.cli.options.removal import Drop, PatternSafe, Ratio, parse_drop, parse_ratio
from api.cli.options.tasks import FewShot, TaskLimit, Tasks, TasksDirectory, parse_tasks
from api.cli.output.answers import print_warnings
from api.cli.output.ci import Ended, Junit, write_for_pipeline
from api.cli.output.console import JsonFlag, make_console, print_json, print_note
from api.cli.output.report import print_report
from replaceme_core.errors import GateRejected, ReplaceMeError
from replaceme_core.local.compress import compress as compress_here
from replaceme_core.local.outcome import Outcome
from replaceme_core.method_traits import Method
from replaceme_core.spec import Loading, Quantization

_JSON_FIELDS = ("removed_blocks", "kept_blocks", "method", "candidates", "stages", "before", "after", "warnings")


def compress(
    model: Model,
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
    ratio: Ratio = None,
    drop: Drop = None,
    pattern_safe: PatternSafe = False,
    method: Annotated[
        Method | None,
        typer.Option(metavar="METHOD", help=options.METHOD_HELP),
    ] = None,
    ridge: options.Ridge = None,
    replays: options.Replays = None,
    groups: options.Groups = None,
    loss: options.Loss = None,
    structure: options.Structure = None,
    as_published: options.AsPublished = False,
    selection: options.SelectionOption = None,
    ridge_later: options.RidgeLater = None,
    time_budget: options.TimeBudget = None,
    calibration_revision: Revision = None,
    calibration_config: Config = None,
    calibration_split: Split = None,
    calibration_column: Column = None,
    samples: Samples = None,
    max_length: MaxLength = None,
    seed: Annotated[int, typer.Option(help="Seed for the selection of calibration text.")] = 0,
    self_generated: SelfGenerated = None,
    general: General = None,
    repeated: Repeated = None,
    judged_on: JudgedOn = None,
    evaluate: Annotated[
        bool, typer.Option("--evaluate/--no-evaluate", help="Measure perplexity, size and speed before and after.")
    ] = True,
    tasks: Tasks = None,
    tasks_dir: TasksDirectory = None,
    task_limit: TaskLimit = None,
    few_shot: FewShot = None,
    gate: Gate = None,
    junit: Junit = None,
    device: Device = None,
    dtype: DtypeOption = None,
    threads: Threads = None,
    batch_size: Annotated[int | None, typer.Option(help="Sequences per batch.")] = None,
    cache: CacheDirectory = None,
    loading: Annotated[
        Loading, typer.Option(help="Load the whole model, or block by block. auto: whole if it fits in memory.")
    ] = Loading.AUTO,
    quantization: Annotated[
        Quantization | None,
        typer.Option(
            help="Hold the blocks in 4 or 8 bits while activations are captured. The result is not quantized."
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    text = calibration_field(
        parse_sources(calibration),
        self_generated=self_generated,
        general=general,
        repeated=repeated,
        judged_on=judged_on,
    )
    given = {
        "samples": samples,
        "max_length": max_length,
        "seed": seed,
        "revision": calibration_revision,
        "config": calibration_config,
        "split": calibration_split,
        "column": calibration_column,
    }
    try:
        with shown_progress() as show:
            outcome = compress_here(
                model,
                out=out,
                calibration=text | {name: value for name, value in given.items() if value is not None},
                ratio=parse_ratio(ratio),
                drop=parse_drop(drop),
                method=options.method_field(
                    method,
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
                evaluation={
                    "enabled": evaluate,
                    "tasks": parse_tasks(tasks),
                    "task_limit": task_limit,
                    "few_shot": few_shot,
                },
                gate=parse_gate(gate),
                compute={
                    "device": device,
                    "dtype": dtype,
                    "batch_size": batch_size,
                    "threads": threads,
                    "loading": loading,
                    "quantization": quantization,
                    "pattern_safe": pattern_safe,
                },
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
        fields = (*_JSON_FIELDS, "gate") if gate else _JSON_FIELDS
        print_json({name: found.get(name) for name in fields})
    else:
        _print_result(outcome)
    print_warnings(make_console(stderr=True), warnings)
    write_for_pipeline(Ended.of_run(outcome, model=model, code=GateRejected.code), junit=junit)
    if outcome.rejection is not None:
        print_note(f"error: {outcome.rejection}; the result is kept in {out}")
        raise typer.Exit(int(ExitCode.GATE_REJECTED))


def _print_result(outcome: Outcome) -> None:
    console = make_console(stderr=False)
    print_report(console, _with_blocks(outcome))
    console.print(f"written to {outcome.directory}")
    print_note("load it with AutoModelForCausalLM.from_pretrained")


def _with_blocks(outcome: Outcome) -> dict[str, object]:
    """The report with what is beside it in the outcome."""
    return {**outcome.report, "removed_blocks": outcome.removed_blocks, "kept_blocks": outcome.kept_blocks}
