"""Blocks chosen one at a time or as a window, then the kept projections after the first cut are solved again.

Closed form throughout: no gradient, no new parameter, the stock architecture (docs/explanation/method.md). At the end
one factor for all logits is fitted on held-out tokens: a pruned model is wrong more often than the dense one, but just
as confident. The factor is folded into the final norm (Guo et al., On Calibration of Modern Neural Networks, ICML 2017:
temperature scaling).
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import torch

from replaceme_core.engine.methods.judge import Judge
from replaceme_core.engine.methods.refit_choice import choose_blocks
from replaceme_core.engine.methods.refit_projections import Refit, Strength, refit_kept
from replaceme_core.engine.methods.replay import held_out_judge, variant_losses
from replaceme_core.engine.methods.task import Candidate, Pruning, Task
from replaceme_core.engine.methods.windows import choose_groups, choose_window
from replaceme_core.engine.model.block_runner import BlockRunner, scale_output, summed_losses
from replaceme_core.engine.model.changes import Variant
from replaceme_core.request.calibration import SELF_GENERATED
from replaceme_core.request.defaults import (
    ANCHOR_RIDGE,
    LATER_RIDGE,
    LEAST_AFTER,
    LEAST_FACTOR,
    MOST_FACTOR,
    REACH,
    READING_RIDGE,
    SCREENING_RIDGE,
    TEMPERATURE_STEP,
)
from replaceme_core.request.method import Selection
from replaceme_core.runner.messages import Stage


def refit(task: Task) -> Pruning:
    """Remove the named blocks, or those that a search finds.

    The result is never worse on held-out tokens than plain removal of the same blocks: where it would be, no weight is
    changed.
    """
    task.require_rank()
    removed, candidates = _blocks(task)
    task.begin(Stage.SOLVE)
    return with_all_tokens(task, judge_refit(task, removed, candidates, part=0.5).scaled())


def _blocks(task: Task) -> tuple[list[int], Sequence[Candidate]]:
    """The blocks to remove, and the table that explains them."""
    if task.spec.drop is not None:
        return sorted(task.spec.drop), [Candidate(start=block, end=block, chosen=True) for block in task.spec.drop]
    if task.spec.method.groups > 1:
        groups = choose_groups(task)
        chosen = [Candidate(start=cut.start, end=cut.end, chosen=True) for cut in groups.cuts]
        return sorted(block for cut in groups.cuts for block in cut.blocks), [*groups.candidates, *chosen]
    if task.spec.method.selection is Selection.WINDOW:
        window = choose_window(task)
        return list(window.winner.cut.blocks), window.candidates
    found = choose_blocks(task)
    return sorted(found.removed), found.candidates


@dataclass(frozen=True, kw_only=True)
class JudgedRefit:
    """A fit with its held-out losses, and its streams (sequences, positions, d) after the last block by held-out batch.

    Without streams the blocks are removed, and no weight is changed.
    """

    task: Task
    pruning: Pruning
    streams: Sequence[torch.Tensor] = ()

    def scaled(self) -> Pruning:
        """The same with the factor of the final norm that fits text best; it is never worse on held-out text."""
        if not self.streams:
            return self.pruning
        activations, progress = self.task.activations, self.task.progress
        judge = held_out_judge(activations)
        # own text is likelier than what people write: it was drawn at a temperature below 1
        text = judge.without(SELF_GENERATED)
        scale, losses = fit_scale(
            self.task.block_runner,
            self.streams,
            [activations.tokens(batch) for batch in activations.held_out_batches],
            judge=text,
            unscaled=self.pruning.held_out_losses,
        )
        progress.metric("held_out_loss", judge.mean(losses), "nats")
        progress.metric("final_scale", scale, "ratio")
        return replace(self.pruning, final_scale=scale, held_out_losses=losses)


def judge_refit(
    task: Task, removed: Sequence[int], candidates: Sequence[Candidate], *, part: float = 1.0
) -> JudgedRefit:
    """The fit without the blocks `removed` on the fit tokens, and its loss on the held-out ones.

    It is the first `part` of the progress of its stage.
    """
    progress, activations = task.progress, task.activations
    found = _refit(task, removed, fit=activations.fit_batches, advance=lambda done: progress.advance(part * done))
    judge = held_out_judge(activations)
    streams = [found.streams[batch] for batch in activations.held_out_batches]
    tokens = [activations.tokens(batch) for batch in activations.held_out_batches]
    losses = summed_losses(task.block_runner, streams, tokens)
    plain = variant_losses(activations, Variant(removed=frozenset(removed)))
    progress.metric("unscaled_held_out_loss", judge.mean(losses), "nats")
    progress.metric("plain_held_out_loss", judge.mean(plain), "nats")
    # rare: text that says little about the blocks, or a requested ridge that is too small
    if not judge.score(losses) <= judge.score(plain):
        return JudgedRefit(task=task, pruning=Pruning(removed=removed, candidates=candidates, held_out_losses=plain))
    pruning = Pruning(
        removed=removed,
        folds=found.folds,
        changes=found.changes,
        candidates=candidates,
        held_out_losses=losses,
    )
    return JudgedRefit(task=task, pruning=pruning, streams=streams)


def with_all_tokens(task: Task, judged: Pruning) -> Pruning:
    """The same fit with the held-out tokens in it: once they have judged it, an eighth of the text can still be used.

    Where they judged that nothing should change, nothing does.
    """
    if not judged.changes and not judged.folds:
        return judged
    every = range(len(task.activations.batches))
    found = _refit(task, judged.removed, fit=every, advance=lambda done: task.progress.advance((1 + done) / 2))
    return replace(judged, folds=found.folds, changes=found.changes)


def _refit(task: Task, removed: Sequence[int], *, fit: Sequence[int], advance: Callable[[float], None]) -> Refit:
    """With the ridges of the request, as far into the model as a refit goes."""
    method = task.spec.method
    strength = Strength(
        anchor=ANCHOR_RIDGE if method.ridge is None else method.ridge,
        later=LATER_RIDGE if method.ridge_later is None else method.ridge_later,
        reading=READING_RIDGE,
        fold=SCREENING_RIDGE if method.ridge is None else method.ridge,
    )
    return refit_kept(
        task.block_runner,
        task.activations,
        removed=removed,
        strength=strength,
        fit=fit,
        unchanged_from=first_unchanged(removed, len(task.block_runner.blocks)),
        advance=advance,
    )


def first_unchanged(removed: Collection[int], blocks: int) -> int:
    """The block of `blocks` from which on no weight changes: `blocks` itself where all kept ones may change.

    >>> first_unchanged([3, 4], 30), first_unchanged([20, 21], 30), first_unchanged([28], 30)
    (20, 27, 30)
    """
    after_removed = max(removed) + 1 + round(LEAST_AFTER * blocks)
    return min(max(round(REACH * blocks), after_removed), blocks)


def fit_scale(
    block_runner: BlockRunner,
    streams: Sequence[torch.Tensor],
    tokens: Sequence[torch.Tensor],
    *,
    judge: Judge,
    unscaled: Sequence[float],
) -> tuple[float, Sequence[float]]:
    """The factor of the final norm's output with the best score, and the summed losses in nats with it.

    `streams` (sequences, positions, d) after the last block and `tokens` (sequences, positions), batch by batch, with
    the `unscaled` losses. The factor is 1 where the norm has no weight that can take it.
    """
    tried: dict[float, Sequence[float]] = {1.0: unscaled}

    def score_at(scale: float) -> float:
        with scale_output(block_runner.resolved.final_norm, scale):
            tried[scale] = summed_losses(block_runner, streams, tokens)
        return judge.score(tried[scale])

    scale = 1.0
    if block_runner.resolved.takes_scale:
        scale, _ = least(score_at, known=judge.score(unscaled))
    return scale, tried[scale]


def least(loss_at: Callable[[float], float], *, known: float) -> tuple[float, float]:
    """The minimum of the parabola through 1, with its `known` loss, and the two points below it, and the loss there.

    The loss is convex in the logits, and close to a parabola near its minimum. The best of all evaluated points is
    returned.

    >>> scale, loss = least(lambda scale: (scale - 0.93) ** 2, known=0.07**2)
    >>> round(scale, 6), round(loss, 6)
    (0.93, 0.0)
    """
    losses = {1.0: known, **{scale: loss_at(scale) for scale in (1 - TEMPERATURE_STEP, 1 - 2 * TEMPERATURE_STEP)}}
    low, middle, high = (losses[1 - steps * TEMPERATURE_STEP] for steps in (2, 1, 0))
    bend = low - 2 * middle + high
    if bend > 0:
        scale = min(max(1 - TEMPERATURE_STEP - TEMPERATURE_STEP * (high - low) / (2 * bend), LEAST_FACTOR), MOST_FACTOR)
        losses[scale] = loss_at(scale)
    best = min(losses, key=lambda scale: losses[scale])
    return best, losses[best]
