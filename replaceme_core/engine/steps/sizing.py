"""How many samples a job has, where its request leaves that open: fewer than usual of a short text."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from replaceme_core.engine.text.documents import documents, is_running_text
from replaceme_core.engine.text.drawing import sequence_counts
from replaceme_core.engine.text.tokens import beginning_of_text, encode
from replaceme_core.request.calibration import MixedSource, errors_of
from replaceme_core.request.defaults import FEWEST_SAMPLES, HELD_OUT_SHARE, MEASURING_PART
from replaceme_core.request.resolve import ResolvedCalibration, ResolvedSpec, resolve_text
from replaceme_core.runner.messages import RunnerRequest


def sized_to_text(spec: ResolvedSpec, request: RunnerRequest, tokenizer: PreTrainedTokenizerBase) -> ResolvedSpec:
    """The resolved `spec`, with as many samples as its texts have, if these are fewer and `request` leaves that open.

    With fewer than `FEWEST_SAMPLES`, or too few to hold out a sequence of each text, it stays as it is, and
    drawing the samples raises the error. Raises `InvalidInput` for a text that cannot be read.
    """
    calibration, requested = spec.calibration, request.spec.calibration
    if requested.samples is not None:
        return spec
    available = [
        _sequences(source, wanted, calibration, tokenizer, path)
        for source, wanted, path in zip(
            calibration.mix, _wanted(calibration), request.text_paths(calibration.mix), strict=True
        )
    ]
    texts = sum(needs > 0 for needs in _wanted(calibration))
    least = max(FEWEST_SAMPLES, HELD_OUT_SHARE * texts)  # each has a held-out one
    while calibration.samples >= least:
        wanted = _wanted(calibration)
        if all(has >= needs for has, needs in zip(available, wanted, strict=True)):
            return spec.model_copy(update={"calibration": calibration})
        possible = (has * calibration.samples // needs for has, needs in zip(available, wanted, strict=True) if needs)
        samples = min(calibration.samples - 1, *possible)
        if samples < least:
            break
        smaller = requested.model_copy(update={"samples": samples, "max_length": calibration.max_length})
        calibration = resolve_text(
            spec.model_copy(update={"calibration": smaller}),
            on_cpu=spec.compute.device == "cpu",
            loading=spec.compute.loading,
        )
    return spec


def _wanted(calibration: ResolvedCalibration) -> list[int]:
    """How many sequences each source of the mix should have; 0 where it is not fitted on, or the model writes it."""
    counts = sequence_counts(calibration, measure=0)
    sizes = [count.fit + count.held_out for count in counts]
    return [
        0 if source.self_generated or source.share == 0 else size + max(1, size // MEASURING_PART)
        for source, size in zip(calibration.mix, sizes, strict=True)
    ]


def _sequences(
    source: MixedSource,
    wanted: int,
    calibration: ResolvedCalibration,
    tokenizer: PreTrainedTokenizerBase,
    path: Path | None,
) -> int:
    """How many sequences the text has; no more than `wanted` are counted."""
    if wanted == 0:
        return 0
    body = calibration.max_length - len(beginning_of_text(tokenizer))
    with errors_of(source):
        encoded = encode(
            documents(source, path), tokenizer, template=source.template, running_text=is_running_text(path)
        )
        return _count(encoded, most=wanted * body) // body


def _count(encoded: Iterable[Sequence[int]], *, most: int) -> int:
    """How many tokens there are; no more than `most` are read."""
    tokens = 0
    for ids in encoded:
        tokens += len(ids)
        if tokens >= most:
            return most
    return tokens
