"""How far into the model a refit goes."""

from collections.abc import Collection

REACH = 2 / 3
"""Of the blocks. Solutions in the last ones are fitted to noise (docs/explanation/how-the-default-works.md#refit)."""
LEAST_AFTER = 1 / 6
"""The part of the blocks after the last removed one that may change, where that is near the end."""


def first_unchanged(removed: Collection[int], blocks: int) -> int:
    """The block of `blocks` from which on no weight changes: `blocks` itself where all kept ones may change.

    >>> first_unchanged([3, 4], 30), first_unchanged([20, 21], 30), first_unchanged([28], 30)
    (20, 27, 30)
    """
    after_removed = max(removed) + 1 + round(LEAST_AFTER * blocks)
    return min(max(round(REACH * blocks), after_removed), blocks)
