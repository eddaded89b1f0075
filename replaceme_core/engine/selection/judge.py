"""Compare losses on held-out text with those of the dense model, on each source of the text apart. Numbers only."""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean
from typing import Self

CERTAINTY = 2.0
"""Standard errors that a difference of scores must exceed to be significant."""
BEYOND_DOUBT = 4.0
"""Standard errors at which no further batch is run; more than `CERTAINTY`, because the test is repeated many times."""
FIRST_LOOK = 4
"""Batches of each source that are run before an entry may be left out for good, or all that the source has."""
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

    def is_beyond_doubt(self, losses: Sequence[float], *, than: Sequence[float]) -> bool:
        """Whether they are worse by `BEYOND_DOUBT` standard errors on enough batches of every source to stop here."""
        return len(losses) >= self.first_verdict and self.is_worse(losses, than=than, certainty=BEYOND_DOUBT)

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
