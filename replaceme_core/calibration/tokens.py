"""The token sequences of a job: for the fit, held out for selection, and for the evaluation."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from replaceme_core.calibration.packing import POOL_FACTOR, TokenSet, draw, encode, pack
from replaceme_core.calibration.self_generated import generate_sequences
from replaceme_core.calibration.sources import documents
from replaceme_core.errors import InvalidInput
from replaceme_core.resolved_spec import ResolvedCalibration, ResolvedSpec
from replaceme_core.spec import Loading

HELD_OUT_SHARE = 8
"""One calibration sequence in eight is held out, to choose the cut and the ridge."""


def held_out_samples(samples: int) -> int:
    """How many of `samples` sequences are held out."""
    return max(1, samples // HELD_OUT_SHARE)


def calibration_tokens(
    spec: ResolvedSpec, tokenizer: PreTrainedTokenizerBase, *, path: Path | None, vocabulary: int
) -> TokenSet:
    """Read, pack and draw the sequences that the resolved `spec` asks for; ids are below `vocabulary`.

    `with_self_generated` adds those that the model generates. Raises `CalibrationTooSmall` for a text that is too short
    and `InvalidInput` for one that cannot be read.
    """
    calibration = spec.calibration
    _require_whole_model(spec)
    counts = sequence_counts(calibration)
    samples = counts.text_fit + counts.text_held_out
    measure = spec.evaluation.samples if spec.evaluation.enabled else 0
    encoded = encode(
        documents(calibration, path),
        tokenizer,
        template=calibration.template,
        running_text=path is not None and path.suffix == ".txt",
    )
    limit = POOL_FACTOR * samples + measure
    packed = pack(encoded, tokenizer, length=calibration.max_length, limit=limit)
    highest = int(packed.sequences.max()) if packed.sequences.numel() else 0
    if highest >= vocabulary:
        raise InvalidInput(
            f"the tokenizer gives id {highest}, but the model has {vocabulary} embeddings: "
            "tokenizer and model do not belong together",
            field="model",
        )
    return draw(packed, samples=samples, held_out=counts.text_held_out, measure=measure, seed=calibration.seed)


@dataclass(frozen=True, kw_only=True)
class SequenceCounts:
    """How many sequences of the text, and how many that the model generates, are fitted on and held out."""

    text_fit: int
    text_held_out: int
    generated_fit: int
    generated_held_out: int


def sequence_counts(calibration: ResolvedCalibration) -> SequenceCounts:
    """Divides the samples of `calibration`: the share of generated ones is about the same in both sets."""
    samples, share = calibration.samples, calibration.self_generated
    held_out = held_out_samples(samples)
    generated_fit, generated_held_out = round((samples - held_out) * share), round(held_out * share)
    return SequenceCounts(
        text_fit=samples - held_out - generated_fit,
        text_held_out=held_out - generated_held_out,
        generated_fit=generated_fit,
        generated_held_out=generated_held_out,
    )


def with_self_generated(
    tokens: TokenSet,
    calibration: ResolvedCalibration,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    advance: Callable[[float], None],
) -> TokenSet:
    """`tokens` with sequences that `model` generates, in random order."""
    counts = sequence_counts(calibration)
    generated = generate_sequences(
        model,
        tokenizer,
        count=counts.generated_fit + counts.generated_held_out,
        length=calibration.max_length,
        seed=calibration.seed,
        advance=advance,
    )
    draw = torch.Generator().manual_seed(calibration.seed)

    def mixed(text: torch.Tensor, generated: torch.Tensor) -> torch.Tensor:
        both = torch.cat([text, generated])
        return both[torch.randperm(len(both), generator=draw)]

    return replace(
        tokens,
        fit=mixed(tokens.fit, generated[: counts.generated_fit]),
        held_out=mixed(tokens.held_out, generated[counts.generated_fit :]),
    )


def _require_whole_model(spec: ResolvedSpec) -> None:
    if spec.calibration.self_generated > 0 and spec.compute.loading is Loading.BLOCKWISE:
        raise InvalidInput(
            "a model that is loaded block by block would be read from disk for each token that it generates; leave "
            "calibration.self_generated out, or set compute.loading to whole",
            field="calibration.self_generated",
            value=spec.calibration.self_generated,
        )
