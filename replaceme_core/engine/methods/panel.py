"""The panel: held-out text of several sources, never fitted, on which candidates are compared with the dense model.

A candidate's losses are sums in nats, one for each held-out batch, over the predictions that count there. Only the
blocks after its first difference from the dense model run.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from statistics import fmean

import torch

from replaceme_core.engine.activations.capture import Activations, Batch, Losses
from replaceme_core.engine.methods.task import Candidate, Task
from replaceme_core.engine.model.block_runner import BlockRunner, summed_loss
from replaceme_core.engine.model.changes import Variant
from replaceme_core.engine.text.panel import QUESTIONS, REPEATED
from replaceme_core.request.calibration import SELF_GENERATED


@dataclass(frozen=True, kw_only=True)
class Panel:
    """`batches` are held-out batches by number. `names` are those of the sources."""

    batches: Mapping[int, Batch]
    names: Sequence[str] = ("text",)
    unit: str = "nats"
    """Of `mean`."""

    @classmethod
    def of(cls, activations: Activations, *, numbers: Sequence[int] | None = None) -> "Panel":
        """The panel of the held-out batches `numbers`, by default of all."""
        numbers = activations.held_out_batches if numbers is None else numbers
        batches = {number: activations.batches[number] for number in numbers}
        return cls(batches=batches, names=activations.text.sources, unit=activations.block_runner.loss_unit)

    def half(self) -> "Panel":
        """Every second batch of each source."""
        return replace(self, batches={number: one for number, one in self.batches.items() if not one.second_half})

    def written_by_people(self) -> "Panel":
        """Without the model's own text and what is built to be recalled or answered."""
        made = (SELF_GENERATED, REPEATED, QUESTIONS)
        written = {number: one for number, one in self.batches.items() if self.names[one.source] not in made}
        return replace(self, batches=written)

    @property
    def sources(self) -> list[int]:
        return sorted({batch.source for batch in self.batches.values()})

    def _of(self, losses: Losses, source: int) -> float:
        """Mean loss in nats per prediction on one source."""
        some = {number: batch for number, batch in self.batches.items() if batch.source == source}
        return sum(losses[number] for number in some) / sum(batch.predictions for batch in some.values())

    def by_source(self, losses: Losses) -> tuple[tuple[str, float], ...]:
        """The name of each source with the mean loss on it, in nats per prediction."""
        return tuple((self.names[source], self._of(losses, source)) for source in self.sources)

    def row(self, row: Candidate, losses: Losses) -> Candidate:
        """The same with these losses."""
        return replace(row, held_out_loss=self.mean(losses), source_losses=self.by_source(losses))

    def mean(self, losses: Losses) -> float:
        """The mean over the sources, each with the same weight, of the mean loss in nats per prediction.

        The difference of two means is the logarithm of the geometric mean of the ratios of the perplexities.
        """
        return fmean(self._of(losses, source) for source in self.sources)

    def error(self, losses: Losses, than: Losses) -> float:
        """The standard error of the difference of two means, from the differences by batch.

        Around their mean on each source, with one variance for all sources, since some have few batches. 0 where each
        source has a single one.
        """
        differences: dict[int, list[float]] = {}
        for number, batch in self.batches.items():
            differences.setdefault(batch.source, []).append((losses[number] - than[number]) / batch.predictions)
        freedom = sum(len(some) - 1 for some in differences.values())
        if freedom == 0:
            return 0.0
        variance = sum((one - fmean(some)) ** 2 for some in differences.values() for one in some) / freedom
        return math.sqrt(variance * sum(1 / len(some) for some in differences.values())) / len(differences)

    def is_worse(self, losses: Losses, than: Losses) -> bool:
        """Whether the mean is greater by more than one standard error, which infinite losses have none of."""
        apart = self.mean(losses) - self.mean(than)
        return apart > (self.error(losses, than) if math.isfinite(apart) else 0)

    def simplest(self, candidates: Sequence[Losses]) -> int:
        """The first of `candidates`, the simplest ones first, that is not worse than the best of all."""
        best = min(candidates, key=self.mean)
        return next(number for number, losses in enumerate(candidates) if not self.is_worse(losses, best))


def variant_losses(
    activations: Activations, variant: Variant, *, numbers: Iterable[int] | None = None
) -> dict[int, float]:
    """The losses of `variant` on each of the held-out batches `numbers`, by default on all.

    Small batches of the same shape are run together, as many sequences as the batches of a pass have: 0.8 of the time
    of one after the other (docs/research/memory-and-speed.md).
    """
    losses = dict[int, float]()
    for together in _together(activations, activations.held_out_batches if numbers is None else numbers):
        some = [activations.batches[number] for number in together]
        read = [activations.before(variant.first, number) for number in together]
        after = variant.run(activations.block_runner, torch.cat(read), since=variant.first)
        for number, part in zip(together, after.split([len(batch.tokens) for batch in some]), strict=True):
            losses[number] = activations.scored_loss(number, part)
    return losses


def _together(activations: Activations, numbers: Iterable[int]) -> Iterator[list[int]]:
    """`numbers` in order, those of one shape together, up to the sequences of a batch of the pass."""
    for shape, some in groupby(numbers, key=lambda number: activations.batches[number].tokens.shape):
        while together := list(islice(some, max(1, activations.batch_size // shape[0]))):
            yield together


def losses_without_each(
    block_runner: BlockRunner, tokens: torch.Tensor, *, removed: Collection[int], tried: Collection[int]
) -> dict[int, float]:
    """For each block of `tried`: summed loss in nats on `tokens` without it and without the blocks `removed`.

    One pass through the model; for each block that is tried, only the blocks after it run again.
    """
    stream = block_runner.enter(tokens)
    losses: dict[int, float] = {}
    for block in range(max(tried) + 1):
        if block in removed:
            continue
        if block in tried:
            without = Variant(removed=frozenset(removed)).run(block_runner, stream, since=block + 1)
            losses[block] = summed_loss(block_runner, without, tokens)
        if block < max(tried):
            stream = block_runner.run(block, stream)
    return losses


def with_or_without(task: Task, removed: Sequence[int], losses: Losses) -> tuple[Losses, Losses]:
    """The losses of the result, and those of plain removal of the same blocks; `losses` are those with what was fitted.

    The result is plain removal where the fit is not better than that: it is the simpler one.
    """
    plain = variant_losses(task.activations, Variant(removed=frozenset(removed)))
    return (losses if Panel.of(task.activations).is_worse(plain, losses) else plain), plain


def report_result(task: Task, losses: Losses) -> None:
    """The held-out loss of a result that was chosen without it, at the end of the stage."""
    panel = Panel.of(task.activations)
    task.progress.metric("result_held_out_loss", panel.mean(losses), panel.unit)
    task.progress.advance(1.0)
