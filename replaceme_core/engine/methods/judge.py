"""Compare losses on held-out text with those of the dense model, on each source of the text apart. Numbers only.

A tournament finds the best of several entries by loss, and spends few batches on those that are clearly worse.
"""

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean
from typing import Self, TypeVar

from replaceme_core.request.defaults import CERTAINTY, FIRST_LOOK, NEAR, SCALES, VERDICT_ERRORS

SMALLEST = 1e-12
"""In nats. A loss of zero has no logarithm."""


@dataclass(frozen=True, kw_only=True)
class Judge:
    """What a candidate's losses on the held-out batches are worth.

    Losses are lists of sums in nats over the predictions of a batch, one for each batch from the first on; shorter for
    a candidate that was left out early. `sources`, `predictions` and `dense` have one value for each batch: the number
    of its source, how many tokens are predicted, and the dense model's loss. `names` are those of the sources. Losses
    on the sources `probes` are shown by `by_source` and take no part in anything else. `heaviest` is the source that
    counts twice in the score; `None`: the worst one.
    """

    sources: Sequence[int]
    predictions: Sequence[int]
    dense: Sequence[float]
    names: Sequence[str] = ("text",)
    probes: Collection[int] = ()
    heaviest: int | None = None

    @property
    def batches(self) -> int:
        """How many there are."""
        return len(self.dense)

    @cached_property
    def counts(self) -> Counter[int]:
        """How many batches each source has that is no probe."""
        return Counter(source for source in self.sources if source not in self.probes)

    def mean(self, losses: Sequence[float]) -> float:
        """Mean loss in nats per prediction, over all batches of `losses`; 0 where all of these are of probes."""
        return self._of_counted(losses) / max(1, self._of_counted(self.predictions[: len(losses)]))

    def without(self, name: str) -> Self:
        """The same judge, for which the source `name` does not count."""
        others = [number for number, other in enumerate(self.names) if other == name]
        return replace(self, probes=frozenset((*self.probes, *others)))

    def by_source(self, losses: Sequence[float], *, beside: Sequence[float]) -> tuple[tuple[str, float], ...]:
        """The name of each source with the mean loss in nats on it; estimated as `paired_mean` where some are missing.

        `beside` are losses on all batches.
        """
        return tuple(
            (
                self.names[source],
                self._mean(beside, source) + self._mean(losses, source) - self._mean(beside[: len(losses)], source),
            )
            for source in self._seen(losses)
        )

    def ratios(self, losses: Sequence[float]) -> dict[int, float]:
        """The logarithm of the ratio of the loss to the dense model's, on each source."""
        dense = self.dense[: len(losses)]
        return {
            source: math.log(max(self._sum(losses, source), SMALLEST) / max(self._sum(dense, source), SMALLEST))
            for source in self._seen(losses)
            if source not in self.probes
        }

    def score(self, losses: Sequence[float]) -> float:
        """The mean over sources of `ratios`, plus that of the heaviest or else the worst of them: less is better.

        A mean alone would let a gain on one kind of text pay for a loss on another. Logarithms of ratios do not depend
        on how hard a text is to predict.
        """
        ratios = self.ratios(losses)
        return fmean(ratios.values()) + ratios[self._twice(ratios)] if ratios else 0.0  # of probes only

    def _twice(self, ratios: Mapping[int, float]) -> int:
        """The source that counts twice; the heaviest one may have no batch yet."""
        if self.heaviest is not None and self.heaviest in ratios:
            return self.heaviest
        return max(ratios, key=lambda source: ratios[source])

    def is_worse(self, losses: Sequence[float], *, than: Sequence[float], certainty: float = CERTAINTY) -> bool:
        """Whether the score is greater by more than `certainty` standard errors of the paired difference.

        An entry with fewer losses than the best one was left out before, and is worse. Where each source has a single
        batch there is no standard error, and any difference counts.
        """
        if len(losses) < len(than):
            return True
        return self.score(losses) - self.score(than) > certainty * self._error(losses, than=than)

    def is_clearly_worse(self, losses: Sequence[float], *, than: Sequence[float]) -> bool:
        """Whether they are worse by `VERDICT_ERRORS` standard errors on enough batches of every source to stop here."""
        return len(losses) >= self.first_verdict and self.is_worse(losses, than=than, certainty=VERDICT_ERRORS)

    @cached_property
    def first_verdict(self) -> int:
        """On fewer batches than this nothing is left out."""
        return next((count for count in range(FIRST_LOOK, self.batches + 1) if self._shows(count)), self.batches + 1)

    def _shows(self, batches: int) -> bool:
        """Whether the first `batches` have enough of every source."""
        seen = Counter(self.sources[:batches])
        return all(seen[source] >= min(FIRST_LOOK, count) for source, count in self.counts.items())

    def paired_mean(self, losses: Sequence[float], *, beside: Sequence[float]) -> float:
        """An estimate of the mean loss over all batches of `beside`, from `losses` on the first of them.

        The difference between the two is measured on the batches that both have; how hard the other batches are to
        predict is taken from `beside`.
        """
        return self.mean(beside) + self.mean(losses) - self.mean(beside[: len(losses)])

    def _error(self, losses: Sequence[float], *, than: Sequence[float]) -> float:
        """The standard error of the difference of two scores.

        From the differences of the logarithms by batch, around their mean on each source, with one variance for all
        sources, since some have few batches. One source counts twice in the score.
        """
        differences: dict[int, list[float]] = {}
        for source, mine, other in zip(self.sources, losses, than, strict=False):
            if source in self.probes:
                continue
            differences.setdefault(source, []).append(math.log(max(mine, SMALLEST) / max(other, SMALLEST)))
        freedom = sum(map(len, differences.values())) - len(differences)
        if freedom == 0:
            return 0.0
        squares = sum((one - fmean(some)) ** 2 for some in differences.values() for one in some)
        twice = self._twice(self.ratios(losses))
        share = 1 / len(differences)
        spread = sum((share + (source == twice)) ** 2 / len(some) for source, some in differences.items())
        return math.sqrt(squares / freedom * spread)

    def _of_counted(self, values: Sequence[float]) -> float:
        """The sum over batches that are of no probe."""
        return sum(value for value, of in zip(values, self.sources, strict=False) if of not in self.probes)

    def _mean(self, losses: Sequence[float], source: int) -> float:
        return self._sum(losses, source) / self._sum(self.predictions[: len(losses)], source)

    def _seen(self, losses: Sequence[float]) -> list[int]:
        return sorted(set(self.sources[: len(losses)]))

    def _sum(self, values: Sequence[float], source: int) -> float:
        return sum(value for value, of in zip(values, self.sources, strict=False) if of == source)


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
    (`Judge.is_clearly_worse`): one batch says little, so nothing is left out before several of every source, and
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
        left = [one for one in left if not judge.is_clearly_worse(losses[one], than=losses[left[0]])]
    if rank is None:
        return left[0], losses
    best = losses[left[0]]
    tied = [
        one
        for one in left
        if judge.score(losses[one]) <= judge.score(best) + NEAR and not judge.is_worse(losses[one], than=best)
    ]
    return min(tied, key=lambda one: rank[one]), losses


def accepted_scale(
    loss_at: Callable[[float], Callable[[int], float]], *, judge: Judge, known: Sequence[float] = ()
) -> tuple[float, list[float], list[float]]:
    """The largest scale at which a change is surely better than none, its losses, and the losses without the change.

    `loss_at(scale)(batch)` is the loss; `known` are the losses of the whole change. Surely better means by more than
    `CERTAINTY` standard errors of the paired difference over all batches, or `VERDICT_ERRORS` on fewer; then the losses
    without the change are fewer too, and `Judge.paired_mean` compares them. The scale is 0 where no change is surely
    better; both lists are then the losses without it.
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
            if judge.is_clearly_worse(none[: batch + 1], than=scaled[: batch + 1]):
                scaled += [loss(rest) for rest in range(len(scaled), judge.batches)]
                return scale, scaled, none
        if judge.is_worse(none, than=scaled):
            return scale, scaled, none
    return 0.0, none, none
