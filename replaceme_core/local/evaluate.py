"""`evaluate`: measure models on this machine, side by side. The command `replaceme evaluate` calls this."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache as once
from functools import partial
from pathlib import Path

from replaceme_core.hub.model_config import read_outline
from replaceme_core.hub.open import open_hub
from replaceme_core.hub.port import Hub
from replaceme_core.local.models import NamedModel, admit
from replaceme_core.local.outcome import EvaluatedModel, Evaluation, measured_of
from replaceme_core.local.requests import validated
from replaceme_core.local.requirements import find_confinement, find_runner, read_settings
from replaceme_core.local.run import ShownCourse, ShowProgress, run, show_nothing
from replaceme_core.local.texts import NamedTexts, Text
from replaceme_core.request.admission import resolve_calibration
from replaceme_core.request.calibration import CalibrationSpec
from replaceme_core.request.tasks import check_tasks
from replaceme_core.runner.inputs import Pinned, fetch, held, pin_text
from replaceme_core.runner.messages import Evaluated, EvaluateRequest, Stage
from replaceme_core.runner.process import EVALUATE_FLAG
from replaceme_core.settings import Settings

SPLIT = "test"
"""Of a data set on the Hub, where the call names none: what models are judged on is not what they were trained on."""
_WEIGHTS = {Stage.DOWNLOAD: 1.0, Stage.EVALUATE: 1.0}


def evaluate(
    models: Sequence[str | Path],
    *,
    text: Text = "builtin:general",
    samples: int = 16,
    max_length: int | None = None,
    tasks: Sequence[str] = (),
    tasks_directory: str | Path | None = None,
    task_limit: int | None = None,
    few_shot: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    threads: int | None = None,
    cache: str | Path | None = None,
    settings: Settings | None = None,
    on_progress: ShowProgress = show_nothing,
) -> Evaluation:
    """Measure perplexity on `samples` sequences of `text`, size, speed and `tasks` of `models`, all in one run.

    A model is a directory or `org/name[@revision]` on the Hub. `text` is a built-in one, a .txt or .jsonl file, or a
    data set on the Hub, of which the split "test" is read where none is named. The other arguments are those of
    `compress`. Raises as `compress` does.
    """
    settings = read_settings() if settings is None else settings
    runner = find_runner(settings, command="evaluate")
    confinement = find_confinement(settings)
    named = [NamedModel.of(model) for model in models]
    check_tasks(tasks, tasks_directory)
    hub = once(partial(open_hub, settings))
    source, pinned_text = _pin_text(text, hub)
    admitted = [admit(model, hub) for model in named]
    options = {
        "samples": samples,
        "max_length": max_length,
        "device": device,
        "dtype": dtype,
        "threads": threads,
        "tasks": tuple(tasks),
        "tasks_directory": None if tasks_directory is None else str(Path(tasks_directory).resolve()),
        "task_limit": task_limit,
        "few_shot": few_shot,
        "cache_directory": None if cache is None else str(Path(cache).resolve()),
        "cache_bytes": settings.statistics_cache_bytes,
    }
    validated(EvaluateRequest, {"model_directory": ".", "builtin": "builtin:general", **options})
    files = (*(one.files for one in admitted), pinned_text)
    remote = [one for one in files if one.snapshot is not None]
    course = ShownCourse(_WEIGHTS, on_progress, downloads=bool(remote))
    with held(remote, hub):
        advance = partial(course.move, Stage.DOWNLOAD) if remote else _nothing
        *directories, path = fetch(files, hub, advance=advance, check=read_outline)
        first, *others = map(str, directories)
        request = EvaluateRequest.model_validate(
            {
                **options,
                "model_directory": first,
                "others": tuple(others),
                "text_path": None if path is None else str(path),
                "builtin": source["dataset"] if path is None else None,
                "data_set": source if pinned_text.snapshot is not None else None,
            }
        )
        evaluated = run((*runner, EVALUATE_FLAG), request, confinement=confinement, course=course)
    assert isinstance(evaluated, Evaluated)
    rows = evaluated.report["models"]
    assert isinstance(rows, list)
    return Evaluation(
        models=tuple(
            EvaluatedModel(name=one.name, revision=model.ref.revision, measured=measured_of(row), report=row)
            for one, model, row in zip(named, admitted, rows, strict=True)
        ),
        text=str(text["dataset"] if isinstance(text, Mapping) else text),
        hardware=str(evaluated.report["hardware"]),
        threads=int(str(evaluated.report["threads"])),
    )


def _pin_text(text: Text, hub: Callable[[], Hub]) -> tuple[Mapping[str, object], Pinned]:
    """The source as it is resolved, and its files. Raises `InvalidInput`."""
    texts = NamedTexts.of(text)
    split = {} if texts.paths else {"split": SPLIT}
    spec = validated(CalibrationSpec, {**split, **texts.calibration})
    spec, _ = resolve_calibration(spec, hub, find_file=texts.find_file)
    (source, *_) = spec.mix
    names = ("dataset", "revision", "config", "split", "column", "template")
    return {name: getattr(source, name) for name in names}, pin_text(source, hub, texts.find_file)


def _nothing(fraction: float) -> None:
    """Nothing is downloaded."""
