"""`reproduce`: make a result again from its `replaceme.json`, and compare the tensors."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from api.cli.exit_codes import ExitCode
from api.cli.failure import failure_of, read_settings
from api.cli.local.recorded import find_model, find_texts, read_recorded, run_differences, version_differences
from api.cli.local.shared import Device, shown_progress
from api.cli.output.console import JsonFlag, make_console, print_json, print_note
from api.cli.output.report import differences_table
from replaceme_core.errors import ReplaceMeError
from replaceme_core.hub.open import open_hub
from replaceme_core.local.models import outline_of
from replaceme_core.local.output_directory import make_staging, move_into_place, removed_at_the_end
from replaceme_core.local.requirements import find_confinement, find_runner
from replaceme_core.local.run import ShownCourse, run
from replaceme_core.runner.eta import weights_of
from replaceme_core.runner.messages import Finished, RunnerRequest

_MOST_SHOWN = 20


def reproduce(
    result: Annotated[
        str, typer.Argument(metavar="REPO|DIR", help="A result: a repository on the Hub, or a directory.")
    ],
    *,
    out: Annotated[Path | None, typer.Option(help="Keep what comes out in this directory; must not exist.")] = None,
    model: Annotated[
        Path | None, typer.Option(help="Directory of the original model. Default: the recorded revision on the Hub.")
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(help="Calibration text that was a file. Repeatable, in the order of the calibration."),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of the result. Default: the newest.")] = None,
    device: Device = None,
    as_json: JsonFlag = False,
) -> None:
    try:
        settings = read_settings()
        runner = find_runner(settings, command="reproduce")
        confinement = find_confinement(settings)
        hub = cache(lambda: open_hub(settings))
        recorded = read_recorded(result, revision=revision, hub=hub)
        source = find_model(recorded, given=model, hub=hub)
        texts = tuple(find_texts(recorded, given=text or (), hub=hub))
        spec = recorded.spec
        if device is not None:
            spec = spec.model_copy(update={"compute": spec.compute.model_copy(update={"device": device})})
        # the tensors are compared, so nothing is judged, and no task needs its data
        evaluation = spec.evaluation.model_copy(update={"tasks": ()})
        spec = spec.model_copy(update={"evaluation": evaluation, "gate": None})
        outline_of(source)
        warnings = version_differences(recorded)
        if spec.method.time_budget_seconds is not None:
            warnings.append("its method had a limit of time, so it may choose otherwise at another speed")
        for warning in warnings:
            print_note(f"warning: {warning}")
        with _staging(out) as staging, shown_progress() as show:
            request = RunnerRequest(
                spec=spec,
                model_directory=str(source),
                calibration_paths=tuple(None if path is None else str(path) for path in texts),
                output_directory=str(staging / "result"),
                compare_with=str(recorded.directory),
            )
            course = ShownCourse(weights_of(spec), show, downloads=False)
            finished = run(runner, request, confinement=confinement, course=course)
            assert isinstance(finished, Finished)
            if out is not None:
                move_into_place(staging / "result", out)
    except ReplaceMeError as error:
        raise failure_of(error, as_json=as_json) from error
    later = run_differences(recorded, finished.report)
    for warning in later:
        print_note(f"warning: {warning}")
    comparison = finished.report["comparison"]
    assert isinstance(comparison, dict)
    if as_json:
        print_json({**comparison, "warnings": [*warnings, *later]})
    else:
        _print(comparison)
    raise typer.Exit(int(ExitCode.SUCCEEDED if comparison["same"] else ExitCode.DIFFERENT))


@contextmanager
def _staging(out: Path | None) -> Iterator[Path]:
    """A directory for the new model: beside `out`, or a temporary one. Deleted at the end."""
    if out is None:
        with TemporaryDirectory(prefix="replaceme-") as place:
            yield Path(place)
        return
    with removed_at_the_end(make_staging(out)) as staging:
        yield staging


def _print(comparison: Mapping[str, object]) -> None:
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
