"""Blocks are removed, then the projections of the blocks that stay are solved again from the first cut on.

Closed form throughout: no gradient, no new parameter, the stock architecture (docs/explanation/method.md). At the end
one factor for all logits is fitted on held-out tokens: a pruned model is wrong more often than the dense one, but just
as confident. The factor is folded into the final norm (Guo et al., On Calibration of Modern Neural Networks, ICML 2017:
temperature scaling).
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from replaceme_core.engine.activations.capture import Activations, Losses
from replaceme_core.engine.methods.candidates import choose_one_by_one, rank
from replaceme_core.engine.methods.panel import Panel, with_or_without
from replaceme_core.engine.methods.refit_projections import Strength, refit_kept
from replaceme_core.engine.methods.task import Candidate, Pruning, Task
from replaceme_core.engine.model.block_runner import scale_output
from replaceme_core.request.defaults import FOLD_RIDGE, REACH, REFIT_RIDGE
from replaceme_core.request.method import Selection
from replaceme_core.runner.messages import Stage

TEMPERATURE_STEP = 0.05
"""Of the factor on the final norm, between the values whose losses are compared."""


def refit(task: Task) -> Pruning:
    """Remove the named blocks, or those that a search finds.

    The result is never worse on held-out tokens than plain removal of the same blocks: where it would be, no weight is
    changed.
    """
    task.require_rank()
    removed, candidates = _chosen(task)
    task.begin(Stage.SOLVE)
    return refit_without(task, removed, fit=task.activations.fit_batches).finished(candidates)


def _chosen(task: Task) -> tuple[Sequence[int], Sequence[Candidate]]:
    """The blocks to remove, and the table that explains them."""
    if task.spec.drop is not None:
        return sorted(task.spec.drop), [Candidate(start=block, end=block, chosen=True) for block in task.spec.drop]
    method = task.spec.method
    if method.groups == 1 and method.selection is Selection.ONE_BY_ONE:
        return choose_one_by_one(task)
    ranked = rank(task, groups=method.groups)
    return ranked.best, ranked.table(ranked.best)


@dataclass(frozen=True, kw_only=True)
class JudgedRefit:
    """A fit with its held-out losses, and its streams (sequences, positions, d) after the last block, by batch."""

    task: Task
    pruning: Pruning
    losses: Losses
    streams: Mapping[int, torch.Tensor]

    def finished(self, candidates: Sequence[Candidate]) -> Pruning:
        """The result with its table; none of its changes, where plain removal of the same blocks is no worse.

        Else with the factor of the final norm that fits text best.
        """
        panel, progress = Panel.of(self.task.activations), self.task.progress
        kept, plain = with_or_without(self.task, self.pruning.removed, self.losses)
        progress.metric("unscaled_held_out_loss", panel.mean(self.losses), panel.unit)
        progress.metric("plain_held_out_loss", panel.mean(plain), panel.unit)
        if kept is plain:
            return Pruning(removed=self.pruning.removed, candidates=candidates)
        scale, losses = self._scale(panel)
        progress.metric("held_out_loss", panel.mean(losses), panel.unit)
        progress.metric("final_scale", scale, "ratio")
        return replace(self.pruning, final_scale=scale, candidates=candidates)

    def _scale(self, panel: Panel) -> tuple[float, Losses]:
        """The factor of the final norm's output, and the losses with it.

        1 where the norm has no weight to take it, and for a model of images: a distance of angles knows no factor.
        Fitted to what people wrote: the model's own text was drawn at a temperature below 1.
        """
        norm, activations = self.task.block_runner.resolved.final_norm, self.task.activations
        written, tried = panel.written_by_people(), {1.0: self.losses}
        if norm is None or self.task.block_runner.pixels is not None:
            return 1.0, self.losses

        def loss_at(scale: float) -> float:
            with scale_output(norm, scale):
                tried[scale] = losses_after(activations, self.streams)
            return written.mean(tried[scale])

        scale = least(loss_at, known=written.mean(self.losses))
        return scale, tried[scale]


def refit_without(
    task: Task, removed: Sequence[int], *, fit: Sequence[int], judged: Collection[int] | None = None
) -> JudgedRefit:
    """The fit without the blocks `removed` on the batches `fit`, and its losses on those `judged`, by default all."""
    method, activations = task.spec.method, task.activations
    found = refit_kept(
        activations,
        removed=removed,
        strength=Strength(
            anchor=REFIT_RIDGE if method.ridge is None else method.ridge,
            later=REFIT_RIDGE if method.ridge_later is None else method.ridge_later,
            reading=REFIT_RIDGE,
            fold=FOLD_RIDGE if method.ridge is None else method.ridge,
        ),
        fit=fit,
        judged=activations.held_out_batches if judged is None else judged,
        unchanged_from=first_unchanged(removed, len(task.block_runner.blocks)),
        advance=task.progress.advance,
    )
    pruning = Pruning(removed=removed, folds=found.folds, changes=found.changes)
    losses = losses_after(activations, found.streams)
    return JudgedRefit(task=task, pruning=pruning, losses=losses, streams=found.streams)


def losses_after(activations: Activations, streams: Mapping[int, torch.Tensor]) -> Losses:
    """The losses of what has left `streams` (sequences, positions, d) after its last block, by held-out batch."""
    return {batch: activations.scored_loss(batch, stream) for batch, stream in streams.items()}


def first_unchanged(removed: Collection[int], blocks: int) -> int:
    """The block of `blocks` from which on no weight changes: solutions in the last ones would be fitted to noise.

    >>> first_unchanged([3, 4], 30), first_unchanged([20, 21], 30), first_unchanged([29], 30)
    (18, 26, 30)
    """
    after = max(removed) + 1
    return after + math.ceil(REACH * (blocks - after))


def least(loss_at: Callable[[float], float], *, known: float) -> float:
    """The minimum of the parabola through 1, with its `known` loss, and the two points below it.

    The loss is convex in the logits, and close to a parabola near its minimum. The best of all evaluated points is
    returned; they are positive.

    >>> round(least(lambda scale: (scale - 0.93) ** 2, known=0.07**2), 6)
    0.93
    >>> least(lambda scale: (scale + 0.1) ** 2, known=1.1**2)
    0.9
    """
    losses = {1.0: known, **{scale: loss_at(scale) for scale in (1 - TEMPERATURE_STEP, 1 - 2 * TEMPERATURE_STEP)}}
    low, middle, high = (losses[1 - steps * TEMPERATURE_STEP] for steps in (2, 1, 0))
    bend = low - 2 * middle + high
    if bend > 0:
        scale = 1 - TEMPERATURE_STEP - TEMPERATURE_STEP * (high - low) / (2 * bend)
        if scale > 0:  # else the model is worse than none, and the likeliest token would become the least likely
            losses[scale] = loss_at(scale)
    return min(losses, key=lambda scale: losses[scale])
