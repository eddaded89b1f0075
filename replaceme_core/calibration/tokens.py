"""The token sequences of a job: what calibrates, what is held out for selection, what measures."""

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from replaceme_core.calibration.packing import POOL_FACTOR, TokenSet, draw, encode, pack
from replaceme_core.calibration.sources import documents
from replaceme_core.errors import InvalidInput
from replaceme_core.spec import CompressionSpec

HELD_OUT_SHARE = 8
"""One sequence in eight is held out for choosing the cut and the ridge."""


def held_out_samples(samples: int) -> int:
    """How many of so many sequences are held out."""
    return max(1, samples // HELD_OUT_SHARE)


def calibration_tokens(
    spec: CompressionSpec, tokenizer: PreTrainedTokenizerBase, *, path: Path | None, vocabulary: int
) -> TokenSet:
    """Read, pack and draw the sequences that the resolved `spec` asks for; ids are below `vocabulary`.

    Raises `CalibrationTooSmall` for an empty or a short text and `InvalidInput` for one that cannot be read.
    """
    calibration = spec.calibration
    assert calibration.samples is not None and calibration.max_length is not None, "the specification is not resolved"
    measure = spec.evaluation.samples if spec.evaluation.enabled else 0
    encoded = encode(
        documents(calibration, path),
        tokenizer,
        template=calibration.template,
        running_text=path is not None and path.suffix == ".txt",
    )
    limit = POOL_FACTOR * (calibration.samples + measure)
    packed = pack(encoded, tokenizer, length=calibration.max_length, limit=limit)
    highest = int(packed.sequences.max()) if packed.sequences.numel() else 0
    if highest >= vocabulary:
        raise InvalidInput(
            f"the tokenizer gives id {highest}, but the model has {vocabulary} embeddings: "
            "tokenizer and model do not belong together",
            field="model",
        )
    return draw(
        packed,
        samples=calibration.samples,
        held_out=held_out_samples(calibration.samples),
        measure=measure,
        seed=calibration.seed,
    )
