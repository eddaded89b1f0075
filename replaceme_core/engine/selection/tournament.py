"""Find the best of several entries by loss, and spend few batches on those that are clearly worse. Numbers only."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from replaceme_core.engine.selection.judge import Judge

NEAR = 0.02
"""Difference of scores beyond which the score decides, however uncertain; below it the rank may. With one source the
score is twice the logarithm of the loss, so this is a hundredth of the loss."""

Entry = TypeVar("Entry")


def tournament(
    field: Sequence[Entry],
    *,
    judge: Judge,
    loss: Callable[[Entry, int], float],
    rank: Mapping[Entry, float] | None = None,
    advance: Callable[[float], None],
) -> tuple[Entry, dict[Entry, list[float]]]:
    """The winner of `field`, and the losses of each entry by batch, as many as were computed.

    Every entry is compared with the present best on the same batches, and is left out once it is significantly worse
    (`Judge.is_beyond_doubt`): one batch says little, so nothing is left out before several batches of every source, and
    nothing whose difference is within its error. The winner has a loss for each batch. Where the scores of the last
    entries are close and their difference is within its error, the smaller `rank` wins; without ranks, the smaller
    score.
    """
    losses: dict[Entry, list[float]] = {one: [] for one in field}
    left = list(field)
    for batch in range(judge.batches):
        for number, one in enumerate(left):
            losses[one].append(loss(one, batch))
            advance((batch + (number + 1) / len(left)) / judge.batches)
        left.sort(key=lambda one: judge.score(losses[one]))
        left = [one for one in left if not judge.is_beyond_doubt(losses[one], than=losses[left[0]])]
    if rank is None:
        return left[0], losses
    best = losses[left[0]]
    tied = [
        one
        for one in left
        if judge.score(losses[one]) <= judge.score(best) + NEAR and not judge.is_worse(losses[one], than=best)
    ]
    return min(tied, key=lambda one: rank[one]), losses


SCALES = (1.0, 0.5)
"""Of a change before it is accepted: the whole of it, or half."""


def accepted_scale(
    loss_at: Callable[[float], Callable[[int], float]], *, judge: Judge, known: Sequence[float] = ()
) -> tuple[float, list[float], list[float]]:
    """The largest scale at which a change is surely better than none, its losses, and the losses without the change.

    `loss_at(scale)(batch)` is the loss; `known` are the losses of the whole change. Surely better means by more than
    `judge.CERTAINTY` standard errors of the paired difference over all batches, or `judge.BEYOND_DOUBT` on fewer; then
    the losses without the change are fewer too, and `Judge.paired_mean` compares them. The scale is 0 where no change
    is surely better; both lists are then the losses without it.
    """
    none: list[float] = []
    loss_of_none = loss_at(0.0)
    for scale in SCALES:
        loss, scaled = loss_at(scale), list(known) if scale == 1 else []
        for batch in range(judge.batches):
            if len(scaled) == batch:
                scaled.append(loss(batch))
            if len(none) == batch:
                none.append(loss_of_none(batch))
            if judge.is_beyond_doubt(none[: batch + 1], than=scaled[: batch + 1]):
                scaled += [loss(rest) for rest in range(len(scaled), judge.batches)]
                return scale, scaled, none
        if judge.is_worse(none, than=scaled):
            return scale, scaled, none
    return 0.0, none, none
