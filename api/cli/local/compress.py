"""`compress`: run the pipeline on this machine, in the same runner as the worker's."""

from pathlib import Path
from typing import Annotated

import typer

from api.cli.exit_codes import ExitCode
from api.cli.failure import failure_of, read_settings
from api.cli.local.options import Device, DtypeOption, ModelDirectory, Threads
from api.cli.local.output_directory import make_staging, move_into_place, removed_at_the_end
from api.cli.local.requests import clean_name, validated
from api.cli.local.requirements import admit_model, find_confinement, find_runner
from api.cli.local.run import run
from api.cli.options import method as options
from api.cli.options.calibration import (
    SEVERAL,
    General,
    JudgedOn,
    MaxLength,
    Samples,
    SelfGenerated,
    calibration_field,
    find_sources,
)
from api.cli.options.gate import Gate, parse_gate
from api.cli.options.removal import Drop, PatternSafe, Ratio, parse_drop, parse_ratio
from api.cli.options.tasks import FewShot, TaskLimit, Tasks, TasksDirectory, parse_tasks
from api.cli.output.answers import print_warnings
from api.cli.output.ci import Ended, Junit, write_for_pipeline
from api.cli.output.console import JsonFlag, make_console, print_json, print_note
from api.cli.output.report import print_report
from replaceme_core.admission.removal import check_removal
from replaceme_core.errors import GateRejected, ReplaceMeError
from replaceme_core.gate.result import GateResult
from replaceme_core.method_traits import Method
from replaceme_core.runner.eta import weights_of
from replaceme_core.runner.messages import Finished, RunnerRequest
from replaceme_core.spec import CompressionSpec, Loading, Quantization

_JSON_FIELDS = ("removed_blocks", "kept_blocks", "method", "candidates", "stages", "before", "after")


def compress(
    model_dir: ModelDirectory,
    *,
    out: Annotated[Path, typer.Option(help="Directory for the result; must not exist.")],
    calibration: Annotated[
        list[str],
        typer.Option(
            metavar="NAME[=SHARE]",
            help=f"Calibration text: builtin:general or another built-in text, or a .txt or .jsonl file. {SEVERAL}",
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
    samples: Samples = None,
    max_length: MaxLength = None,
    seed: Annotated[int, typer.Option(help="Seed for the selection of calibration text.")] = 0,
    self_generated: SelfGenerated = None,
    general: General = None,
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
    cache: Annotated[
        Path | None,
        typer.Option(help="Directory for cached activations, for later runs on the same model and calibration text."),
    ] = None,
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
    """Compress a model."""
    try:
        settings = read_settings()
        runner = find_runner(settings, command="compress")
        confinement = find_confinement(settings)
        sources = find_sources(calibration)
        spec = validated(
            CompressionSpec,
            {
                "model": {"repo_id": f"local/{clean_name(model_dir)}"},
                "ratio": parse_ratio(ratio),
                "drop": parse_drop(drop),
                "calibration": {
                    **calibration_field(sources, self_generated=self_generated, general=general, judged_on=judged_on),
                    "samples": samples,
                    "max_length": max_length,
                    "seed": seed,
                },
                "method": options.method_field(
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
                "evaluation": {
                    "enabled": evaluate,
                    "tasks": parse_tasks(tasks),
                    "task_limit": task_limit,
                    "few_shot": few_shot,
                },
                "gate": parse_gate(gate),
                "compute": {
                    "device": device,
                    "dtype": dtype,
                    "batch_size": batch_size,
                    "threads": threads,
                    "loading": loading,
                    "quantization": quantization,
                    "pattern_safe": pattern_safe,
                },
            },
        )
        outline = admit_model(model_dir)
        check_removal(spec, outline)
        staging = make_staging(out)
    except ReplaceMeError as error:
        raise failure_of(error, as_json=as_json) from error
    with removed_at_the_end(staging):
        request = RunnerRequest(
            spec=spec,
            model_directory=str(model_dir.resolve()),
            calibration_paths=tuple(None if source.path is None else str(source.path) for source in sources),
            output_directory=str(staging / "result"),
            tasks_directory=None if tasks_dir is None else str(tasks_dir.resolve()),
            cache_directory=None if cache is None else str(cache.resolve()),
            cache_bytes=settings.statistics_cache_bytes,
        )
        finished = run(
            runner, request, confinement=confinement, weights=weights_of(spec, blocks=outline.blocks), as_json=as_json
        )
        assert isinstance(finished, Finished)
        move_into_place(staging / "result", out, as_json=as_json)
    if as_json:
        blocks = {"removed_blocks": finished.removed_blocks, "kept_blocks": finished.kept_blocks}
        fields = _JSON_FIELDS if spec.gate is None else (*_JSON_FIELDS, "gate")
        print_json({name: {**finished.report, **blocks}.get(name) for name in fields})
    else:
        _print_result(finished, out)
    print_warnings(make_console(stderr=True), finished.report)
    rejected = None if spec.gate is None else _rejection(GateResult.in_report(finished.report))
    ended = Ended.of_run(finished, model=str(model_dir), out=out, rejected=rejected, code=GateRejected.code)
    write_for_pipeline(ended, junit=junit)
    if rejected is not None:
        print_note(f"error: {rejected}; the result is kept in {out}")
        raise typer.Exit(int(ExitCode.GATE_REJECTED))


def _rejection(gate: GateResult | None) -> str | None:
    """Why the result is rejected; `None` where it is not."""
    if gate is None:
        return "the runner did not judge the gate"
    return None if gate.passed else str(gate)


def _print_result(finished: Finished, out: Path) -> None:
    console = make_console(stderr=False)
    blocks = {"removed_blocks": finished.removed_blocks, "kept_blocks": finished.kept_blocks}
    print_report(console, {**finished.report, **blocks})
    console.print(f"written to {out}")
    print_note("load it with AutoModelForCausalLM.from_pretrained")
