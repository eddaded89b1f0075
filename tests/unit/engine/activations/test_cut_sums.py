"""Sums of a cut: which batches they are over, and how tokens count in them."""

import pytest
import torch

from replaceme_core.engine.activations.capture import CutStatistics, schedule
from replaceme_core.engine.model.changes import Cut
from replaceme_core.engine.numerics.stream import Stream, token_weights
from replaceme_core.engine.numerics.sums import Moments
from tests.fixtures.models.activations import of_one_source
from tests.fixtures.models.tiny import token_ids

FIT, HELD_OUT = token_ids(6, 32, seed=1), token_ids(8, 32, seed=2)


def test_held_out_sequences_come_in_parts() -> None:
    """They alternate between two halves."""
    work = schedule(of_one_source(fit=FIT, held_out=HELD_OUT), 4)
    assert [(len(batch.tokens), batch.held_out) for batch in work] == [(4, False), (2, False)] + [(1, True)] * 8
    assert [batch.second_half for batch in work] == [False] * 2 + [False, True] * 4
    assert torch.equal(torch.cat([batch.tokens for batch in work if batch.held_out]), HELD_OUT)


TOKENS, WIDTH = 200, 6
CPU = torch.device("cpu")


@pytest.mark.parametrize(("kept_sinks", "end_sinks"), [((), ()), ((3,), (3,)), ((3, 50), (7, 50, 199))])
def test_tokens_count_by_the_lesser_weight_of_both_ends(
    kept_sinks: tuple[int, ...], end_sinks: tuple[int, ...]
) -> None:
    generator = torch.Generator().manual_seed(0)
    write, kept, end = (torch.randn(2 * TOKENS, WIDTH, generator=generator) for _ in range(3))
    for values, sinks in ((kept, kept_sinks), (write, kept_sinks), (end, end_sinks)):
        for token in sinks:
            values[token] *= 1000
    fit, held_out = (Moments.zeros(WIDTH, device=CPU) for _ in range(2))
    sums = CutStatistics(cut=Cut(start=1, end=1), done=(), fit=fit, held_out=held_out, diagonal=False)
    gram, cross = torch.zeros(2, WIDTH, WIDTH, dtype=torch.float64)
    error = target = 0.0
    for first in (0, TOKENS):
        rows = slice(first, first + TOKENS)
        some, here, there = write[rows], Stream(kept[rows]), Stream(end[rows])
        sums.add(some, kept=here, end=there, held_out=False)
        weights = token_weights(here, there)
        scale = weights.double().unsqueeze(1)
        m, e = some.double() * scale, (there.values - here.values).double() * scale
        gram += m.T @ m
        cross += m.T @ e
        error += float(e.square().sum())
        target += float((there.values.double() * scale).square().sum())
    moments = sums.fit
    assert sums.held_out.tokens == 0
    assert sums.sinks == len({*kept_sinks, *end_sinks})
    torch.testing.assert_close(moments.gram, gram, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(moments.cross, cross, rtol=1e-5, atol=1e-3)
    assert moments.error == pytest.approx(error, rel=1e-5)
    assert moments.target == pytest.approx(target, rel=1e-5)
    assert moments.tokens == 2 * TOKENS
