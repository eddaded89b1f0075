"""The best of several by loss, with little evidence spent on those that are clearly worse. Knows numbers only."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

CERTAINTY = 2.0
"""Standard errors that a difference in held-out loss must exceed to count (docs/decisions/0003)."""

Entry = TypeVar("Entry")


def tournament(
    field: Sequence[Entry],
    *,
    batches: int,
    loss: Callable[[Entry, int], float],
    rank: Mapping[Entry, float],
    advance: Callable[[float], None],
) -> tuple[Entry, dict[Entry, list[float]]]:
    """The winner of `field`, and the losses of each by batch as far as it came.

    In rounds that halve the field while the evidence doubles (successive halving); the last two meet on all `batches`.
    Where their losses do not tell them apart, the smaller `rank` does.
    """
    losses: dict[Entry, list[float]] = {one: [] for one in field}
    plan = rounds(len(field), batches)
    planned = sum(count * (until - since) for count, since, until in plan)
    left = list(field)
    for count, since, until in plan:
        left = left[:count]
        for one in left:
            for batch in range(since, until):
                losses[one].append(loss(one, batch))
                advance(sum(map(len, losses.values())) / planned)
        left.sort(key=lambda one: sum(losses[one]))
    tied = [one for one in left if not is_worse(losses[one], than=losses[left[0]])]
    return min(tied, key=lambda one: rank[one]), losses


SCALES = (1.0, 0.5)
"""Of a change that has to earn its place: as it is, or halved."""


def earned_scale(losses: Callable[[float], Sequence[float]]) -> tuple[float, Sequence[float], Sequence[float]]:
    """The largest scale at which a change is surely better than none, its losses, and those of no change.

    `losses` gives them by batch for a scale of the change. Surely: by more than `CERTAINTY` standard errors of the
    paired difference. 0 if there is no such scale; its losses are then those of no change.
    """
    none = losses(0.0)
    for scale in SCALES:
        scaled = losses(scale)
        if is_worse(none, than=scaled):
            return scale, scaled, none
    return 0.0, none, none


def is_worse(losses: Sequence[float], *, than: Sequence[float]) -> bool:
    """Whether the loss is greater by more than `CERTAINTY` standard errors of the paired difference over batches.

    Fewer batches than the best one was judged on: it was left behind in an earlier round. A single batch gives no
    standard error; any difference counts then.
    """
    if len(losses) < len(than):
        return True
    differences = [mine - best for mine, best in zip(losses, than, strict=True)]
    if len(differences) < 2:
        return bool(differences[0] > 0)
    error = statistics.stdev(differences) / len(differences) ** 0.5
    return bool(statistics.fmean(differences) > CERTAINTY * error)


def rounds(candidates: int, batches: int) -> list[tuple[int, int, int]]:
    """`(survivors, from batch, to batch)`: the field halves while the evidence doubles; the last meet on everything."""
    plan = []
    count, since, until = candidates, 0, max(1, batches // 4)
    while count > 2 and until < batches:
        plan.append((count, since, until))
        count, since, until = max(2, (count + 1) // 2), until, 2 * until
    return [*plan, (count, since, batches)]
