"""Successive halving: the field halves while the number of batches doubles (Jamieson and Talwalkar, arXiv 1502.07943).

Cheaper than `tournament`, and without a test of what it leaves out: for searches of many steps, each over many entries,
where a later step can still choose what an earlier one has left out.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

from replaceme_core.selection.tournament import is_beyond_doubt

Entry = TypeVar("Entry")


def halve(
    field: Sequence[Entry], *, batches: int, loss: Callable[[Entry, int], float]
) -> tuple[Entry, dict[Entry, list[float]]]:
    """The entry of least loss, and the losses of each entry by batch, as many as were computed.

    The last two entries are compared until it is beyond doubt which one is worse; the best one has a loss for each of
    the `batches`.
    """
    losses: dict[Entry, list[float]] = {one: [] for one in field}
    left = list(field)
    for count, since, until in rounds(len(field), batches):
        left = left[:count]
        for batch in range(since, until):
            for one in left:
                losses[one].append(loss(one, batch))
            left.sort(key=lambda one: sum(losses[one]))
            if until == batches:  # the last round
                left = [one for one in left if not is_beyond_doubt(losses[one], than=losses[left[0]])]
    return left[0], losses


def rounds(candidates: int, batches: int) -> list[tuple[int, int, int]]:
    """`(entries left, first batch, end)` of each round: entries halve while batches double, until two are left."""
    plan = []
    count, since, until = candidates, 0, max(1, batches // 8)
    while count > 2 and until < batches:
        plan.append((count, since, until))
        count, since, until = max(2, (count + 1) // 2), until, 2 * until
    return [*plan, (count, since, batches)]
