"""Sequences that repeat passages."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from replaceme_core.engine.text.drawing import TokenSet
from replaceme_core.engine.text.tokens import PASSAGE, REPEATED, repeat_passages, with_repeated
from replaceme_core.request.method import Method
from replaceme_core.request.resolve import ResolvedCalibration

LENGTH = 12


def calibration(samples: int, repeated: float | None, *, length: int = LENGTH) -> ResolvedCalibration:
    fields = {"dataset": "org/a", "self_generated": 0.0, "samples": samples, "max_length": length}
    return ResolvedCalibration.model_validate({**fields, "repeated": repeated})


def numbered(fit: int, held_out: int) -> TokenSet:
    """Each token once."""
    ids = torch.arange((fit + held_out) * LENGTH).reshape(-1, LENGTH)
    return TokenSet.of_one_source(fit=ids[:fit], held_out=ids[fit:], measure=ids[:0])


def test_a_long_sequence_has_several_passages_and_each_follows_itself() -> None:
    (of_first, of_second), *_ = repeat_passages(torch.arange(4 * PASSAGE)[None], prefix=0)
    first, second, third, fourth = torch.arange(4 * PASSAGE).split(PASSAGE)
    assert torch.equal(of_first, torch.cat([first, first, second, second]))
    assert torch.equal(of_second, torch.cat([third, third, fourth, fourth]))


@given(length=st.integers(8, 1100), prefix=st.integers(0, 2))
def test_every_length_is_filled_and_repeats_half_of_itself(length: int, prefix: int) -> None:
    given = torch.arange(length)[None]
    found = repeat_passages(given, prefix=prefix)
    assert found.shape == (1, 2, length)
    assert torch.equal(found[..., :prefix], given[:, None, :prefix].expand(-1, 2, -1))
    for body in found[0, :, prefix:]:
        again = [token in body[:place] for place, token in enumerate(body)]
        assert sum(again) == pytest.approx(len(body) / 2, abs=PASSAGE / 2)
        assert body[1] == body[0] + 1, "a passage is text in its order"


def test_passages_of_fitted_sequences_are_spread_over_the_fit() -> None:
    tokens = numbered(fit=56, held_out=8)
    found = with_repeated(tokens, calibration(64, 0.375), method=Method.REFIT, prefix=1)
    assert found.sources == ("text", REPEATED)
    assert torch.equal(found.held_out, tokens.held_out), "only `auto` holds any out"
    assert torch.equal(found.held_out_sources, tokens.held_out_sources)
    assert [int((found.fit_sources == source).sum()) for source in (0, 1)] == [56, 21]
    made = found.fit[found.fit_sources == 1]
    assert torch.isin(made, tokens.fit).all()
    assert all(len(row.unique()) < LENGTH for row in made)
    assert len(made.unique(dim=0)) == 21
    assert torch.equal(found.fit[found.fit_sources == 0].sort(dim=0).values, tokens.fit)
    assert 0 < int(found.fit_sources[:20].sum()) < 20
    assert torch.equal(found.fit, with_repeated(tokens, calibration(64, 0.375), method=Method.REFIT, prefix=1).fit)


def test_passages_of_held_out_sequences_of_every_source_judge() -> None:
    tokens = replace(
        numbered(fit=56, held_out=8), sources=("a", "b"), held_out_sources=torch.tensor([0, 0, 0, 0, 0, 0, 0, 1])
    )
    found = with_repeated(tokens, calibration(64, 0.375), method=Method.AUTO, prefix=1)
    assert found.sources == ("a", "b", REPEATED)
    assert torch.equal(found.held_out[found.held_out_sources < 2].sort(dim=0).values, tokens.held_out)
    made = found.held_out[found.held_out_sources == 2]
    given = [tokens.held_out[number] for number in (0, 7, 1, 2)]  # the first of each, then more of the first
    assert [int(row[0]) for row in made] == [int(row[0]) for row in given], "the beginning of the text"
    for row, wanted in zip(made, given, strict=True):
        assert set(row.tolist()) < set(wanted.tolist())


@pytest.mark.parametrize(("samples", "share"), [(64, None), (64, 0.0), (2, 0.375)])
def test_none_leaves_the_text_as_it_is(samples: int, share: float | None) -> None:
    tokens = numbered(fit=4, held_out=2)
    assert with_repeated(tokens, calibration(samples, share), method=Method.AUTO, prefix=0) is tokens
