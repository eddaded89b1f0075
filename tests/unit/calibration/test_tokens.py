"""How many sequences come from the text and how many from the model, and that both are on both sides."""

import pytest
import torch

from replaceme_core.calibration.packing import TokenSet
from replaceme_core.calibration.tokens import calibration_tokens, sequence_counts, with_self_generated
from replaceme_core.errors import InvalidInput
from replaceme_core.spec import CalibrationSpec, CompressionSpec, ComputeSpec, Loading, ModelRef
from tests.fixtures.models.tiny import byte_tokenizer, tiny_model


def calibration(samples: int, share: float) -> CalibrationSpec:
    return CalibrationSpec(dataset="builtin:pydoc-topics", samples=samples, max_length=16, self_generated=share)


@pytest.mark.parametrize(
    ("samples", "share", "expected"),
    [
        (64, 0.0, (56, 8, 0, 0)),
        (64, 0.5, (28, 4, 28, 4)),
        (64, 1.0, (0, 0, 56, 8)),
        (9, 0.25, (6, 1, 2, 0)),
        (2, 0.5, (1, 1, 0, 0)),
    ],
)
def test_the_mix_is_about_the_same_on_both_sides(
    samples: int, share: float, expected: tuple[int, int, int, int]
) -> None:
    found = sequence_counts(calibration(samples, share))
    assert (found.text_fit, found.text_held_out, found.generated_fit, found.generated_held_out) == expected


def test_generated_sequences_are_mixed_with_the_text() -> None:
    spec = calibration(64, 0.5)
    text = TokenSet(fit=torch.full((28, 16), -1), held_out=torch.full((4, 16), -2), measure=torch.full((2, 16), -3))
    found = with_self_generated(text, spec, tiny_model(), byte_tokenizer(), advance=lambda _: None)
    assert torch.equal(found.measure, text.measure)
    for mixed, mark, count in ((found.fit, -1, 56), (found.held_out, -2, 8)):
        assert len(mixed) == count
        from_text = (mixed == mark).all(1)
        assert int(from_text.sum()) == count // 2
        assert bool((mixed[~from_text] >= 0).all())
        assert from_text[: count // 2].any()
        assert (~from_text[: count // 2]).any()


def test_a_lazily_loaded_model_generates_nothing() -> None:
    spec = CompressionSpec(
        model=ModelRef(repo_id="org/tiny"),
        ratio=0.5,
        calibration=calibration(8, 0.5),
        compute=ComputeSpec(loading=Loading.BLOCKWISE),
    )
    with pytest.raises(InvalidInput, match="read from disk for each token") as refused:
        calibration_tokens(spec, byte_tokenizer(), path=None, vocabulary=260)
    assert refused.value.field == "calibration.self_generated"
