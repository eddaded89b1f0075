"""How sure a mean of a few values is, and a share of a few cases."""

import math
import statistics
from collections.abc import Sequence

# of Student's t for 1, 2, 3 ... degrees of freedom, 95 percent between both sides
_QUANTILES = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
_NORMAL = 1.959964


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 percent confidence interval of the mean, by Student's t; `None` for fewer than two values.

    >>> low, high = mean_interval([1.0, 2.0, 3.0])
    >>> round(low, 3), round(high, 3)
    (-0.484, 4.484)
    """
    count = len(values)
    if count < 2:
        return None
    half = quantile(count - 1) * statistics.stdev(values) / math.sqrt(count)
    mean = statistics.fmean(values)
    return mean - half, mean + half


def share_interval(share: float, count: int) -> tuple[float, float]:
    """The 95 percent confidence interval of a `share` of `count` cases (1 or more), by Wilson's score.

    Unlike one from a standard error, it has a width where all cases are alike.

    >>> low, high = share_interval(0.0, 6)
    >>> round(low, 3), round(high, 3)
    (0.0, 0.39)
    """
    spread = _NORMAL**2 / count
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(spread * (share * (1 - share) + spread / 4)) / (1 + spread)
    return max(0.0, min(middle - half, share)), min(1.0, max(middle + half, share))  # rounding leaves the share inside


def quantile(degrees: int) -> float:
    """The 97.5 percent quantile of Student's t."""
    if degrees <= len(_QUANTILES):
        return _QUANTILES[degrees - 1]
    z = _NORMAL  # the expansion of Fisher and Cornish, exact to four digits from here on
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
