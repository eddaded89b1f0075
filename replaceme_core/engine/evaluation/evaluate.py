"""`replaceme evaluate`: measure model directories side by side on a text."""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from replaceme_core.engine.activations.cache import open_cache
from replaceme_core.engine.evaluation.compare import answer, ratio_interval
from replaceme_core.engine.evaluation.dense_results import DenseResults
from replaceme_core.engine.evaluation.measure import Measurement, Subject, TextSize, measure
from replaceme_core.engine.evaluation.speed import measure_speed, speed_changes
from replaceme_core.engine.evaluation.tasks import load_tasks
from replaceme_core.engine.model.dequantize import in_full_precision
from replaceme_core.engine.model.device import hardware_name, make_deterministic, this_machine
from replaceme_core.engine.model.load import load_model, load_tokenizer, stored_weights
from replaceme_core.engine.text.documents import documents, is_running_text
from replaceme_core.engine.text.tokens import encode, pack
from replaceme_core.errors import CalibrationTooSmall, InvalidInput
from replaceme_core.hub.model_config import read_outline
from replaceme_core.request.calibration import CalibrationSource
from replaceme_core.request.defaults import CPU_CALIBRATION
from replaceme_core.request.fields import FILE_PREFIX
from replaceme_core.request.resolve import resolve_compute
from replaceme_core.request.spec import ComputeSpec
from replaceme_core.runner.messages import EvaluateRequest
from replaceme_core.wording import counted


def evaluate(request: EvaluateRequest) -> dict[str, object]:
    """`{hardware, threads, models}`: each model with perplexity, size and speed, and how it compares with the first.

    Where there are prompts, each model with its answers and nothing else.

    Each is measured on the first `samples` full sequences of the text by its own tokenizer, which do not overlap.
    `ratio` is that of its perplexity to the first model's, where both read the same tokens. All models are in memory at
    once, so that their speed is measured in turn. Raises `InvalidInput` for a missing text, `CalibrationTooSmall` for a
    short one, and the errors of loading a model.
    """
    asked = ComputeSpec(device=request.device, dtype=request.dtype, threads=request.threads)
    compute = resolve_compute(asked, replace(this_machine(request.device), cpu_dtype="float32"))
    dtype = make_deterministic(compute)
    directories = [Path(path) for path in request.directories]
    for directory in directories:
        _require_language_model(directory)
    if request.prompts:
        return {"models": [_ask(directory, request, dtype=dtype, device=compute.device) for directory in directories]}
    if request.text_path is not None and not Path(request.text_path).exists():
        raise InvalidInput(f"there is no file {request.text_path}", field="text", value=request.text_path)
    loaded = load_tasks(
        request.tasks, directory=request.tasks_directory, limit=request.task_limit, few_shot=request.few_shot
    )
    length, texts = _length(directories, request.max_length), []
    for directory in directories:
        texts.append(_sequences(directory, request, length=length))
    cache = open_cache(request.cache_directory, limit=request.cache_bytes)
    subjects = [
        Subject(
            name=directory.name,
            model=_load(directory, dtype=dtype, device=compute.device),
            directory=directory,
            results=DenseResults.of(directory, cache, compute),
        )
        for directory in directories
    ]
    measured = [
        measure([subject], sequences, size=size)[0] for subject, (sequences, size) in zip(subjects, texts, strict=True)
    ]
    speeds = measure_speed([subject.model for subject in subjects], [sequences[0] for sequences, _ in texts])
    tasks = [
        [] if loaded is None else loaded.run(subject.model, load_tokenizer(subject.directory), subject.results)
        for subject in subjects
    ]
    rows = []
    for number, (one, speed) in enumerate(zip(measured, speeds, strict=True)):
        compared = number > 0 and torch.equal(texts[0][0], texts[number][0])
        changes = speed_changes(speeds[0], speed)
        rows.append(
            {
                **asdict(one),
                "speed": asdict(speed),
                **(_against(measured[0], one, subjects[0], subjects[number]) if compared else _NOT_COMPARED),
                "told_apart": {name: one["told_apart"] for name, one in changes.items()} if number else None,
                "tasks": [
                    {**found.as_dict(), **(found.kept_of(before) if number else _NOT_KEPT)}
                    for before, found in zip(tasks[0], tasks[number], strict=True)
                ],
                "reused": subjects[number].results.reused,
            }
        )
    hardware = hardware_name(torch.device(compute.device))
    return {"hardware": hardware, "threads": compute.threads, "models": rows}


def _require_language_model(directory: Path) -> None:
    if read_outline(directory).reads_images:
        raise InvalidInput(
            f"{directory.name} reads images, and this is for language models; it is measured while it is compressed",
            field="models",
            value=directory.name,
        )


def _load(directory: Path, *, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """The model; where its weights are quantized, from a copy that is gone once it is loaded."""
    beside = Path(tempfile.gettempdir()) / directory.name
    with in_full_precision(directory, beside=beside, writes=False) as readable:
        stored_weights(readable)
        return load_model(readable, dtype=dtype, device=device)


def _ask(directory: Path, request: EvaluateRequest, *, dtype: torch.dtype, device: str) -> dict[str, object]:
    """What the model answers to the prompts; one model at a time is in memory."""
    model, tokenizer = _load(directory, dtype=dtype, device=device), load_tokenizer(directory)
    longest = read_outline(directory).longest
    found = answer(model, tokenizer, request.prompts, new_tokens=request.new_tokens, longest=longest)
    return {"answers": [{"prompt": one.prompt, "text": one.text, "loops": one.loops} for one in found]}


_NOT_KEPT: dict[str, float | None] = {"kept": None, "kept_above_chance": None}
_NOT_COMPARED: dict[str, float | None] = {"ratio": None, "ratio_low": None, "ratio_high": None}


def _against(first: Measurement, one: Measurement, before: Subject, after: Subject) -> dict[str, float | None]:
    """The ratio of the perplexities on the same tokens, with its confidence interval."""
    predictions = one.tokens // len(after.losses)
    low, high = ratio_interval(before.losses, after.losses, predictions=predictions) or (None, None)
    return {"ratio": one.perplexity / first.perplexity, "ratio_low": low, "ratio_high": high}


def _length(directories: Sequence[Path], asked: int | None) -> int:
    """Tokens of a sequence: as `asked`, else the usual number, or what the shortest table of positions has."""
    length = asked or CPU_CALIBRATION[1]
    for directory in directories:
        longest = read_outline(directory).longest
        if longest is None or length <= longest:
            continue
        if asked is not None:
            raise InvalidInput(
                f"{directory.name} has {longest:,} positions, and sequences of {asked:,} tokens are asked for; set "
                "max_length to fewer",
                field="max_length",
                value=asked,
            )
        length = longest
    return length


def _sequences(directory: Path, request: EvaluateRequest, *, length: int) -> tuple[torch.Tensor, TextSize]:
    """The token ids (samples, length) of the text by the tokenizer in `directory`."""
    tokenizer = load_tokenizer(directory)
    path = None if request.text_path is None else Path(request.text_path)
    source = request.source or CalibrationSource(dataset=request.builtin or f"{FILE_PREFIX}text.txt")
    encoded = encode(documents(source, path), tokenizer, template=source.template, running_text=is_running_text(path))
    packed = pack(encoded, tokenizer, length=length, limit=request.samples)
    sequences = packed.sequences
    if len(sequences) < request.samples:
        advice = f", or ask for at most {counted(len(sequences), 'samples')}" if len(sequences) else ""
        raise CalibrationTooSmall(
            f"the text has {counted(packed.tokens, 'tokens')}, which fill {counted(len(sequences), 'sequences')} of "
            f"{length}; {request.samples} are needed: give more text{advice}",
            field="samples",
            value=request.samples,
        )
    return sequences, TextSize.of(sequences, tokenizer)
