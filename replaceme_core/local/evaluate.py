"""`evaluate`: measure models on this machine, side by side. The command `replaceme evaluate` calls this."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from replaceme_core.hub.port import Hub
from replaceme_core.local.inputs import AdmittedModel, Text, admit, named_texts, validated
from replaceme_core.local.run import Machine, ShownCourse, ShowProgress, show_nothing
from replaceme_core.request.admission import resolve_texts
from replaceme_core.request.calibration import CalibrationSpec
from replaceme_core.request.tasks import check_tasks
from replaceme_core.runner.inputs import Pinned, pin_text
from replaceme_core.runner.messages import EvaluateRequest, Stage
from replaceme_core.settings import Settings
from replaceme_core.shapes import Shape

SPLIT = "test"
"""Of a data set on the Hub, where the call names none: what models are judged on is not what they were trained on."""
_WEIGHTS = {Stage.DOWNLOAD: 1.0, Stage.EVALUATE: 1.0}


class Measured(Shape):
    """A model on text that calibration did not see: `perplexity` over `tokens` predictions, size and speed.

    `parameters` count tied ones once, `bytes` are those of the weights on disk. A model of images has no perplexity.
    """

    perplexity: float | None = None
    tokens: int | None = None
    parameters: int
    bytes: int
    tokens_per_second: float | None = None
    dtype: str
    blocks: int


@dataclass(frozen=True, kw_only=True)
class EvaluatedModel:
    """A model as it was named, with the commit where it is on the Hub. `report` has all measurements of it."""

    name: str
    revision: str | None
    measured: Measured
    report: Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Models measured side by side on `text`. `hardware` and `threads` are what their speed belongs to."""

    models: Sequence[EvaluatedModel]
    text: str
    hardware: str
    threads: int


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
    machine = Machine(settings, command="evaluate")
    check_tasks(tasks, tasks_directory)
    source, pinned_text = _pin_text(text, machine.hub)
    options = {
        "builtin": source["dataset"] if pinned_text == Pinned() else None,
        "source": source,
        "samples": samples,
        "max_length": max_length,
        "device": device,
        "dtype": dtype,
        "threads": threads,
        "tasks": tuple(tasks),
        "tasks_directory": tasks_directory,
        "task_limit": task_limit,
        "few_shot": few_shot,
        "cache_directory": cache,
        "cache_bytes": machine.settings.statistics_cache_bytes,
    }
    report, rows = _run(machine, models, options, on_progress, pinned_text)
    measured = [
        EvaluatedModel(name=one.name, revision=one.ref.revision, measured=Measured.model_validate(row), report=row)
        for one, row in rows
    ]
    return Evaluation(
        models=measured,
        text=str(text["dataset"] if isinstance(text, Mapping) else text),
        hardware=str(report["hardware"]),
        threads=int(str(report["threads"])),
    )


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What one model answers to one prompt; `loops`: it ends in a repetition."""

    model: str
    prompt: str
    text: str
    loops: bool


def ask(
    models: Sequence[str | Path],
    prompts: Sequence[str],
    *,
    new_tokens: int = 128,
    device: str | None = None,
    dtype: str | None = None,
    settings: Settings | None = None,
    on_progress: ShowProgress = show_nothing,
) -> list[Answered]:
    """The answers of each model to `prompts`, without sampling; those of one prompt follow each other.

    A model is a directory or `org/name[@revision]` on the Hub. Raises as `evaluate` does.
    """
    machine = Machine(settings, command="ask")
    options = {"prompts": tuple(prompts), "new_tokens": new_tokens, "device": device, "dtype": dtype}
    _, rows = _run(machine, models, options, on_progress)
    return [Answered(model=one.name, **row["answers"][number]) for number in range(len(prompts)) for one, row in rows]


def _run(
    machine: Machine, models: Sequence[str | Path], options: Mapping[str, object], show: ShowProgress, *text: Pinned
) -> tuple[Mapping[str, object], list[tuple[AdmittedModel, Any]]]:
    """The report of a run with these fields of its request, and each model with its part of the report."""
    admitted = [admit(model, machine.hub) for model in models]
    validated(EvaluateRequest, {**options, "model_directory": ".", "builtin": "builtin:general"})
    files = (*(one.files for one in admitted), *text)
    course = ShownCourse(_WEIGHTS, show, files=files)
    with machine.fetched(files, course) as paths:
        first, *others = paths[: len(models)]
        given = {"model_directory": first, "others": tuple(others), "text_path": next(iter(paths[len(models) :]), None)}
        report = machine.run(EvaluateRequest.model_validate({**options, **given}), course=course).report
    rows = report["models"]
    assert isinstance(rows, list)
    return report, list(zip(admitted, rows, strict=True))


def _pin_text(text: Text, hub: Callable[[], Hub]) -> tuple[Mapping[str, object], Pinned]:
    """The source as it is resolved, and its files. Raises `InvalidInput`."""
    named, _, paths = named_texts(text)
    split = {} if paths else {"split": SPLIT}
    spec = validated(CalibrationSpec, {**split, **named})
    spec, _, _ = resolve_texts(spec, None, hub, find_file=paths.__getitem__)
    (source, *_) = spec.mix
    names = ("dataset", "revision", "config", "split", "column", "template")
    return {name: getattr(source, name) for name in names}, pin_text(source, hub, paths.__getitem__)
