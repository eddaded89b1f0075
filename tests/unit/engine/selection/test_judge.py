"""Losses beside the dense model's, on each source apart."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replaceme_core.engine.methods.judge import Judge

BEST = [100.0, 120.0, 90.0, 110.0]


def judge(*, sources: list[int], dense: float = 50.0) -> Judge:
    return Judge(sources=sources, predictions=[10] * len(sources), dense=[dense] * len(sources), names=("a", "b"))


@pytest.mark.parametrize(
    ("losses", "worse"),
    [
        ([105.0, 125.5, 94.8, 115.1], True),  # by about five in every batch
        ([103.0, 117.5, 94.0, 109.0], False),  # now more, now less
        ([100.5, 120.0, 90.0, 110.0], False),  # in a single batch
        (BEST, False),
        ([101.0, 121.0], True),  # left out before
    ],
)
def test_a_difference_counts_when_it_is_more_than_chance(losses: list[float], worse: bool) -> None:
    assert judge(sources=[0] * 4).is_worse(losses, than=BEST) is worse


def test_a_single_batch_decides_by_itself() -> None:
    assert judge(sources=[0]).is_worse([2.0], than=[1.0])
    assert not judge(sources=[0]).is_worse([1.0], than=[1.0])


def test_the_worst_source_counts_twice() -> None:
    """A gain on one kind of text does not pay for a loss on another."""
    two = judge(sources=[0, 1, 0, 1])
    even, lopsided = [60.0] * 4, [50.0, 70.0, 50.0, 70.0]
    assert two.mean(even) == two.mean(lopsided)
    assert two.score(even) < two.score(lopsided)
    assert two.score(lopsided) == pytest.approx(math.log(70 / 50) / 2 + math.log(70 / 50))
    assert two.by_source(lopsided, beside=lopsided) == (("a", 5.0), ("b", 7.0))
    assert two.by_source([60.0, 70.0], beside=lopsided) == (("a", 6.0), ("b", 7.0))


def test_a_probe_is_shown_and_does_not_count() -> None:
    sources, predictions, dense = [1, 0, 1, 0], [20, 10, 20, 10], [10.0, 50.0, 10.0, 50.0]
    probed = Judge(sources=sources, predictions=predictions, dense=dense, names=("a", "b"), probes=[1])
    alone = Judge(sources=[0, 0], predictions=[10, 10], dense=[50.0, 50.0])
    best, other = [60.0, 70.0, 60.0, 71.0], [10.0, 75.0, 10.0, 77.0]
    assert probed.score(best) == alone.score([70.0, 71.0])
    assert probed.mean(best) == alone.mean([70.0, 71.0])
    assert probed.is_worse(other, than=best) and alone.is_worse([75.0, 77.0], than=[70.0, 71.0])
    assert probed.by_source(best, beside=best) == (("a", 7.05), ("b", 3.0))
    assert probed.counts == {0: 2}
    assert (probed.score(best[:1]), probed.mean(best[:1])) == (0, 0), "a probe only"
    assert not probed.is_worse(other[:1], than=best[:1])


def test_the_heaviest_source_counts_twice_whichever_is_worst() -> None:
    usual, heavy = judge(sources=[0, 1]), replace(judge(sources=[0, 1]), heaviest=1)
    one, other = [60.0, 55.0], [70.0, 54.0]
    assert usual.score(one) < usual.score(other)
    assert heavy.score(one) == pytest.approx((math.log(60 / 50) + math.log(55 / 50)) / 2 + math.log(55 / 50))
    one, other = [70.0, 54.0], [68.0, 56.0]
    assert usual.score(other) < usual.score(one)
    assert heavy.score(one) < heavy.score(other)
    assert heavy.score(one[:1]) == usual.score(one[:1]), "nothing of it has been seen"


def test_a_source_that_is_hard_to_predict_weighs_no_more() -> None:
    easy_and_hard = Judge(sources=[0, 1], predictions=[10, 10], dense=[10.0, 1000.0])
    assert easy_and_hard.score([20.0, 1000.0]) == pytest.approx(easy_and_hard.score([10.0, 2000.0]))


@given(st.lists(st.floats(0.5, 2.0), min_size=4, max_size=12))
def test_with_one_source_the_score_orders_like_the_loss(factors: list[float]) -> None:
    one = judge(sources=[0] * len(factors))
    losses, other = [50 * factor for factor in factors], [50 * factor for factor in [*factors[::-1][1:], 1.0]]
    if abs(sum(losses) - sum(other)) > 1e-6:
        assert (one.score(losses) < one.score(other)) == (sum(losses) < sum(other))


def test_nothing_is_beyond_doubt_before_every_source_was_seen_several_times() -> None:
    sources = [0, 1, 0, 0, 0, 1, 0, 1]
    two = judge(sources=sources)
    worse, best = [70.0 + number % 2 for number in range(8)], [60.0] * 8
    verdicts = [two.is_beyond_doubt(worse[:seen], than=best[:seen]) for seen in range(1, 9)]
    assert verdicts == [False] * 7 + [True], "the three batches of the second source are all that it has"


def test_losses_that_ended_early_are_compared_where_both_are_known() -> None:
    four = judge(sources=[0] * 4)
    assert four.paired_mean([60.0, 40.0], beside=[50.0, 30.0, 90.0, 110.0]) == 8.0, "worse by 1, on tokens of 7"
    assert four.paired_mean([60.0, 40.0], beside=[50.0, 30.0]) == 5.0
