"""Find the best of several entries by loss, and spend few batches on those that are clearly worse. Numbers only."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

CERTAINTY = 2.0
"""Standard errors that a difference in held-out loss must exceed to count (docs/decisions/0003)."""
BEYOND_DOUBT = 4.0
"""Standard errors at which no further batch is run; more than `CERTAINTY`, because the test is repeated many times."""
NEAR = 0.01
"""Relative difference in loss beyond which the loss decides, however uncertain; below it the rank may."""
FIRST_LOOK = 4
"""Batches that are run before an entry may be left out for good."""

Entry = TypeVar("Entry")


def tournament(
    field: Sequence[Entry],
    *,
    batches: int,
    loss: Callable[[Entry, int], float],
    rank: Mapping[Entry, float] | None = None,
    advance: Callable[[float], None],
) -> tuple[Entry, dict[Entry, list[float]]]:
    """The winner of `field`, and the losses of each entry by batch, as many as were computed.

    Rounds halve the field while the number of batches doubles (successive halving). The last two entries are compared
    until it is beyond doubt which one is worse; the winner has a loss for each of the `batches`. Where the losses of
    the last two are close and their difference is within its error, the smaller `rank` wins; without ranks, the smaller
    loss.
    """
    losses: dict[Entry, list[float]] = {one: [] for one in field}
    plan = rounds(len(field), batches)
    planned = sum(count * (until - since) for count, since, until in plan)
    left = list(field)
    for count, since, until in plan:
        left = left[:count]
        for batch in range(since, until):
            for one in left:
                losses[one].append(loss(one, batch))
                advance(sum(map(len, losses.values())) / planned)
            left.sort(key=lambda one: sum(losses[one]))
            if until == batches:  # the last round
                left = [one for one in left if not is_beyond_doubt(losses[one], than=losses[left[0]])]
    advance(1.0)
    if rank is None:
        return left[0], losses
    least = losses[left[0]]
    tied = [
        one for one in left if sum(losses[one]) <= (1 + NEAR) * sum(least) and not is_worse(losses[one], than=least)
    ]
    return min(tied, key=lambda one: rank[one]), losses


SCALES = (1.0, 0.5)
"""Of a change before it is accepted: the whole of it, or half."""


def accepted_scale(
    loss_at: Callable[[float], Callable[[int], float]], *, batches: int, known: Sequence[float] = ()
) -> tuple[float, list[float], list[float]]:
    """The largest scale at which a change is surely better than none, its losses, and the losses without the change.

    `loss_at(scale)(batch)` is the loss; `known` are the losses of the whole change. Surely better means by more than
    `CERTAINTY` standard errors of the paired difference over all batches, or beyond doubt on fewer; then the losses
    without the change are fewer too, and `paired_mean` compares them. The scale is 0 where no change is surely better;
    both lists are then the losses without it.
    """
    none: list[float] = []
    loss_of_none = loss_at(0.0)
    for scale in SCALES:
        loss, scaled = loss_at(scale), list(known) if scale == 1 else []
        for batch in range(batches):
            if len(scaled) == batch:
                scaled.append(loss(batch))
            if len(none) == batch:
                none.append(loss_of_none(batch))
            if is_beyond_doubt(none[: batch + 1], than=scaled[: batch + 1]):
                scaled += [loss(rest) for rest in range(len(scaled), batches)]
                return scale, scaled, none
        if is_worse(none, than=scaled):
            return scale, scaled, none
    return 0.0, none, none


def paired_mean(losses: Sequence[float], *, beside: Sequence[float], mean: Callable[[Sequence[float]], float]) -> float:
    """An estimate of the `mean` over all batches of `beside`, from `losses` on the first of them.

    The difference between the two is measured on the batches that both have; how hard the other batches are to predict
    is taken from `beside`.
    """
    return mean(beside) + mean(losses) - mean(beside[: len(losses)])


def is_beyond_doubt(losses: Sequence[float], *, than: Sequence[float]) -> bool:
    """Whether they are worse by so much, on so many batches, that no further batch is needed."""
    return len(losses) >= FIRST_LOOK and is_worse(losses, than=than, certainty=BEYOND_DOUBT)


def is_worse(losses: Sequence[float], *, than: Sequence[float], certainty: float = CERTAINTY) -> bool:
    """Whether the loss is greater by more than `certainty` standard errors of the paired difference over batches.

    An entry with fewer losses than the best one was left out in an earlier round, and is worse. A single batch gives
    no standard error; any difference counts then.
    """
    if len(losses) < len(than):
        return True
    differences = [mine - best for mine, best in zip(losses, than, strict=True)]
    if len(differences) < 2:
        return bool(differences[0] > 0)
    error = statistics.stdev(differences) / len(differences) ** 0.5
    return bool(statistics.fmean(differences) > certainty * error)


def rounds(candidates: int, batches: int) -> list[tuple[int, int, int]]:
    """`(entries left, first batch, end)` of each round: entries halve while batches double, until two are left."""
    plan = []
    count, since, until = candidates, 0, max(1, batches // 8)
    while count > 2 and until < batches:
        plan.append((count, since, until))
        count, since, until = max(2, (count + 1) // 2), until, 2 * until
    return [*plan, (count, since, batches)]
