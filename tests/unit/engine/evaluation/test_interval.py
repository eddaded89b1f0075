"""Confidence intervals: known quantiles, and how often they hold."""

import math
import random
import statistics

import pytest

from replaceme_core.engine.evaluation.compare import ratio_interval
from replaceme_core.engine.evaluation.measure import mean_interval, quantile, share_interval


@pytest.mark.parametrize(
    ("degrees", "expected"), [(1, 12.706), (9, 2.262), (30, 2.042), (31, 2.0395), (60, 2.0003), (1000, 1.9623)]
)
def test_quantiles_of_students_t(degrees: int, expected: float) -> None:
    assert quantile(degrees) == pytest.approx(expected, abs=5e-4)


def test_nineteen_of_twenty_intervals_hold_the_mean() -> None:
    numbers = random.Random(0)
    held = 0
    for _ in range(2000):
        low, high = mean_interval([numbers.gauss(3.0, 2.0) for _ in range(4)]) or (math.nan, math.nan)
        held += low <= 3.0 <= high
    assert 0.935 < held / 2000 < 0.965


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [(0, 6, 0.0, 0.390), (6, 6, 0.610, 1.0), (1, 1, 0.207, 1.0), (70, 100, 0.604, 0.781), (1, 100, 0.0018, 0.0545)],
)
def test_the_interval_of_a_share(right: int, count: int, low: float, high: float) -> None:
    """Known values of Wilson's score interval. It has a width where all or none are right."""
    assert share_interval(right / count, count) == pytest.approx((low, high), abs=5e-4)


def test_the_interval_of_a_share_holds_it() -> None:
    for count in (1, 2, 3, 7, 100, 1838):
        for right in range(count + 1):
            found_low, found_high = share_interval(right / count, count)
            assert 0 <= found_low <= right / count <= found_high <= 1
            assert found_high > found_low


def test_one_value_says_nothing_about_its_spread() -> None:
    assert mean_interval([1.0]) is None
    assert ratio_interval([2.0], [3.0], predictions=10) is None


def test_pairs_are_compared_not_means() -> None:
    """Sequences differ far more than the models do on each of them."""
    before = [10.0, 200.0, 400.0, 800.0]
    after = [loss + 10 * math.log(1.5) + noise for loss, noise in zip(before, (0.1, -0.1, 0.1, -0.1), strict=True)]
    low, high = ratio_interval(before, after, predictions=10) or (math.nan, math.nan)
    assert low < 1.5 < high
    assert high - low < 0.1
    assert math.sqrt(low * high) == pytest.approx(
        math.exp(statistics.fmean(after) / 10 - statistics.fmean(before) / 10)
    )
