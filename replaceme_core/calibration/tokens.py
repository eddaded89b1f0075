"""The token sequences of a job: what calibrates, what is held out for selection, what measures."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from replaceme_core.calibration.packing import POOL_FACTOR, TokenSet, draw, encode, pack
from replaceme_core.calibration.self_generated import generate_sequences
from replaceme_core.calibration.sources import documents
from replaceme_core.errors import InvalidInput
from replaceme_core.spec import CalibrationSpec, CompressionSpec, Loading

HELD_OUT_SHARE = 8
"""One sequence in eight is held out for choosing the cut and the ridge."""


def held_out_samples(samples: int) -> int:
    """How many of so many sequences are held out."""
    return max(1, samples // HELD_OUT_SHARE)


def calibration_tokens(
    spec: CompressionSpec, tokenizer: PreTrainedTokenizerBase, *, path: Path | None, vocabulary: int
) -> TokenSet:
    """Read, pack and draw the sequences that the resolved `spec` asks for; ids are below `vocabulary`.

    Without those that the model writes itself (`with_self_generated`). Raises `CalibrationTooSmall` for an empty or a
    short text and `InvalidInput` for one that cannot be read.
    """
    calibration = spec.calibration
    assert calibration.max_length is not None, "the specification is not resolved"
    _require_whole_model(spec)
    own = self_generated(calibration)
    samples = own.text_fit + own.text_held_out
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
    return draw(packed, samples=samples, held_out=own.text_held_out, measure=measure, seed=calibration.seed)


@dataclass(frozen=True, kw_only=True)
class Shares:
    """How many sequences of the text, and how many that the model writes itself, are fitted on and held out."""

    text_fit: int
    text_held_out: int
    own_fit: int
    own_held_out: int


def self_generated(calibration: CalibrationSpec) -> Shares:
    """The samples of the resolved `calibration` by where they come from: about the same mix on both sides."""
    samples, share = calibration.samples, calibration.self_generated
    assert samples is not None, "the specification is not resolved"
    held_out = held_out_samples(samples)
    own_fit, own_held_out = round((samples - held_out) * share), round(held_out * share)
    return Shares(
        text_fit=samples - held_out - own_fit,
        text_held_out=held_out - own_held_out,
        own_fit=own_fit,
        own_held_out=own_held_out,
    )


def with_self_generated(
    tokens: TokenSet,
    calibration: CalibrationSpec,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    advance: Callable[[float], None],
) -> TokenSet:
    """`tokens` with the sequences that `model` writes itself among them, in an order drawn at random."""
    own = self_generated(calibration)
    assert calibration.max_length is not None, "the specification is not resolved"
    written = generate_sequences(
        model,
        tokenizer,
        count=own.own_fit + own.own_held_out,
        length=calibration.max_length,
        seed=calibration.seed,
        advance=advance,
    )
    draw = torch.Generator().manual_seed(calibration.seed)

    def mixed(text: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        both = torch.cat([text, own])
        return both[torch.randperm(len(both), generator=draw)]

    return replace(
        tokens,
        fit=mixed(tokens.fit, written[: own.own_fit]),
        held_out=mixed(tokens.held_out, written[own.own_fit :]),
    )


def _require_whole_model(spec: CompressionSpec) -> None:
    if spec.calibration.self_generated > 0 and spec.compute.loading is Loading.BLOCKWISE:
        raise InvalidInput(
            "a model that is read one block at a time would be read once for each token that it writes; leave "
            "calibration.self_generated out, or have the model loaded whole (compute.loading)",
            field="calibration.self_generated",
            value=spec.calibration.self_generated,
        )
