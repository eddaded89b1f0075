"""`compress`: make a smaller model on this machine, without a service. The command `replaceme compress` calls this."""

from collections.abc import Mapping, Sequence
from functools import cache as once
from functools import partial
from pathlib import Path

from replaceme_core.hub.model_config import read_outline
from replaceme_core.hub.open import open_hub
from replaceme_core.local.models import NamedModel, admit
from replaceme_core.local.outcome import Outcome, OutcomeWarning
from replaceme_core.local.output_directory import check_absent, make_staging, move_into_place, removed_at_the_end
from replaceme_core.local.requests import validated
from replaceme_core.local.requirements import find_confinement, find_runner, read_settings
from replaceme_core.local.run import ShownCourse, ShowProgress, run, show_nothing
from replaceme_core.local.texts import NamedTexts, Text
from replaceme_core.request.admission import resolve_calibration
from replaceme_core.request.removal import check_removal
from replaceme_core.request.spec import CompressionRequest
from replaceme_core.request.tasks import check_tasks
from replaceme_core.runner.eta import weights_of
from replaceme_core.runner.inputs import fetch, held, pin_text
from replaceme_core.runner.messages import Finished, RunnerRequest, Stage
from replaceme_core.settings import Settings

Fields = Mapping[str, object]


def compress(
    model: str | Path,
    *,
    out: str | Path,
    calibration: Text | Sequence[Text],
    ratio: float | Fields | None = None,
    drop: Sequence[int] | None = None,
    method: str | Fields | None = None,
    evaluation: Fields | None = None,
    gate: Fields | None = None,
    compute: Fields | None = None,
    tasks_directory: str | Path | None = None,
    cache: str | Path | None = None,
    settings: Settings | None = None,
    on_progress: ShowProgress = show_nothing,
) -> Outcome:
    """Compress `model`, a directory or `org/name[@revision]` on the Hub, into the new directory `out`.

    `calibration` is a built-in text, a .txt or .jsonl file, a data set on the Hub as org/name, one of these with its
    options, or several. It, `ratio`, `drop`, `method`, `evaluation`, `gate` and `compute` are the fields of
    `POST /jobs`. `tasks_directory` holds the data of tasks, `cache` what later calls on the same model can use.
    `settings` are by default those of the environment: the Hub, its token, the sandbox.

    The model runs in a process of its own, confined as in a worker, and `on_progress` is called in this thread. A
    result that misses its gate is returned with a `rejection`.

    Raises `InvalidInput` for what is wrong in the call, `AccessDenied` and `HubUnreachable` for the Hub, and any other
    error of `replaceme_core.errors` with which the run fails; then `out` does not exist.
    """
    settings = read_settings() if settings is None else settings
    runner = find_runner(settings, command="compress")
    confinement = find_confinement(settings)
    named, texts, out = NamedModel.of(model), NamedTexts.of(calibration), Path(out)
    given = {"method": method, "evaluation": evaluation, "gate": gate, "compute": compute}
    spec = validated(
        CompressionRequest,
        {
            "model": {"repo_id": named.ref.repo_id, "revision": named.ref.revision},
            "ratio": ratio,
            "drop": None if drop is None else list(drop),
            "calibration": texts.calibration,
            **{name: value for name, value in given.items() if value is not None},
        },
    ).to_spec()
    check_absent(out)
    check_tasks(spec.evaluation.tasks, tasks_directory)
    hub = once(partial(open_hub, settings))
    source = admit(named, hub)
    check_removal(spec, source.outline)
    resolved, _ = resolve_calibration(spec.calibration, hub, find_file=texts.find_file)
    spec = spec.model_copy(update={"model": source.ref, "calibration": resolved})
    files = (source.files, *(pin_text(one, hub, texts.find_file) for one in spec.calibration.mix))
    remote = [one for one in files if one.snapshot is not None]
    course = ShownCourse(weights_of(spec, blocks=source.outline.blocks), on_progress, downloads=bool(remote))
    with held(remote, hub), removed_at_the_end(make_staging(out)) as staging:
        advance = partial(course.move, Stage.DOWNLOAD) if remote else _nothing
        directory, *paths = fetch(files, hub, advance=advance, check=read_outline)
        request = RunnerRequest(
            spec=spec,
            model_directory=str(directory),
            calibration_paths=tuple(None if path is None else str(path) for path in paths),
            output_directory=str(staging / "result"),
            hub=None if source.files.snapshot is None else settings.hub_address,
            tasks_directory=None if tasks_directory is None else str(Path(tasks_directory).resolve()),
            cache_directory=None if cache is None else str(Path(cache).resolve()),
            cache_bytes=settings.statistics_cache_bytes,
        )
        finished = run(runner, request, confinement=confinement, course=course)
        assert isinstance(finished, Finished)
        move_into_place(staging / "result", out)
    return Outcome.of(finished, spec, directory=out, warnings=[_gated(named.name)] if source.is_gated else [])


def _nothing(fraction: float) -> None:
    """Nothing is downloaded."""


def _gated(name: str) -> OutcomeWarning:
    message = f"{name} is gated: those who made it set conditions for its use, which hold for the result too"
    return OutcomeWarning(code="gated", message=message)
