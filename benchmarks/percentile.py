"""Percentiles without interpolation."""


def percentile(values: list[float], share: float) -> float:
    """The smallest of `values` that is at least as large as a `share` of them.

    >>> percentile([3.0, 1.0, 2.0, 4.0], 0.5), percentile([3.0, 1.0, 2.0, 4.0], 0.99)
    (2.0, 4.0)
    """
    ordered = sorted(values)
    return ordered[min(max(-int(-share * len(ordered) // 1) - 1, 0), len(ordered) - 1)]
