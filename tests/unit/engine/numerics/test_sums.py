"""The products that the sums are made of."""

import pytest
import torch

from replaceme_core.engine.numerics.stream import Stream, token_weights
from replaceme_core.engine.numerics.sums import EndSums, WriteSums, gram_of


@pytest.mark.parametrize("width", [0, 1, 3, 4, 5, 16, 41])
def test_a_gram_matrix_is_whole_and_symmetric(width: int) -> None:
    """It is put together from panels, whose number does not divide every width."""
    values = torch.randn(50, width, generator=torch.Generator().manual_seed(width))
    found = gram_of(values)
    torch.testing.assert_close(found, values.T @ values)
    assert torch.equal(found, found.T)
    assert found.dtype == values.dtype


TOKENS, WIDTH = 200, 6
CPU = torch.device("cpu")


@pytest.mark.parametrize("kept_sinks", [(), (3,), (3, 50)])
@pytest.mark.parametrize("end_sinks", [(), (3,), (7, 50, 199)])
def test_tokens_count_by_the_lesser_weight_of_both_ends(
    kept_sinks: tuple[int, ...], end_sinks: tuple[int, ...]
) -> None:
    generator = torch.Generator().manual_seed(0)
    write, kept, end = (torch.randn(2 * TOKENS, WIDTH, generator=generator) for _ in range(3))
    for values, sinks in ((kept, kept_sinks), (write, kept_sinks), (end, end_sinks)):
        for token in sinks:
            values[token] *= 1000
    anchor, sums = WriteSums.zeros(WIDTH, device=CPU), EndSums.zeros(WIDTH, device=CPU)
    gram, cross = torch.zeros(2, WIDTH, WIDTH, dtype=torch.float64)
    error = target = 0.0
    for first in (0, TOKENS):
        rows = slice(first, first + TOKENS)
        some, here, there = write[rows], Stream(kept[rows]), Stream(end[rows])
        own, weights = token_weights(here), token_weights(here, there)
        anchor.add(some, weights=own)
        sums.add(some, kept=here, end=there, weights=weights, own=own)
        scale = weights.double().unsqueeze(1)
        m, e = some.double() * scale, (there.values - here.values).double() * scale
        gram += m.T @ m
        cross += m.T @ e
        error += float(e.square().sum())
        target += float((there.values.double() * scale).square().sum())
    moments = sums.moments(anchor)
    torch.testing.assert_close(moments.gram, gram, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(moments.cross, cross, rtol=1e-5, atol=1e-3)
    assert moments.error == pytest.approx(error, rel=1e-5)
    assert moments.target == pytest.approx(target, rel=1e-5)
    assert moments.tokens == 2 * TOKENS


def test_the_sums_of_an_anchor_are_not_changed_by_its_cuts() -> None:
    generator = torch.Generator().manual_seed(0)
    write, kept, end = (torch.randn(TOKENS, WIDTH, generator=generator) for _ in range(3))
    end[7] *= 1000
    anchor, sums = WriteSums.zeros(WIDTH, device=CPU), EndSums.zeros(WIDTH, device=CPU)
    own = token_weights(Stream(kept))
    anchor.add(write, weights=own)
    before = anchor.gram.clone()
    sums.add(write, kept=Stream(kept), end=Stream(end), weights=token_weights(Stream(kept), Stream(end)), own=own)
    assert not torch.equal(sums.moments(anchor).gram, before)
    assert torch.equal(anchor.gram, before)
