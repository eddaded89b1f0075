"""Several cuts for one ratio: which sets of windows are worth a replay. Knows numbers only."""

from collections.abc import Mapping
from functools import cache
from heapq import nsmallest

from replaceme_core.models.cut import Cut


def lengths(*, remove: int, groups: int) -> list[int]:
    """The lengths that a cut may have where `groups` of them remove `remove` blocks: within one block of an even share.

    >>> lengths(remove=8, groups=3)
    [2, 3]
    """
    share = remove / groups
    return [length for length in range(1, remove - groups + 2) if abs(length - share) <= 1]


def best_sets(residuals: Mapping[Cut, float], *, groups: int, remove: int, most: int) -> list[tuple[Cut, ...]]:
    """At most `most` sets of `groups` cuts that remove `remove` blocks, those of the least summed residual first.

    Between two cuts at least one block stays: the keeper of the second one.
    """
    cuts = sorted(residuals)

    @cache
    def best(count: int, blocks: int, since: int) -> list[tuple[float, tuple[Cut, ...]]]:
        """The best of `count` cuts of `blocks` blocks in all, none of which starts before `since`."""
        if count == 0:
            return [(0.0, ())] if blocks == 0 else []
        found = [
            (residuals[cut] + rest, (cut, *others))
            for cut in cuts
            if cut.start >= since and len(cut.blocks) <= blocks - (count - 1)
            for rest, others in best(count - 1, blocks - len(cut.blocks), cut.end + 2)
        ]
        return nsmallest(most, found)

    return [chosen for _, chosen in best(groups, remove, 1)]
