"""Blocks are removed, then the projections of the blocks that stay are solved again from the first cut on.

Closed form throughout: no gradient, no new parameter, the stock architecture (docs/explanation/method.md). Once blocks
are removed, every later block reads a stream that it was not trained on. It reads the stream through two sets of linear
maps and writes to it through two more: those of its attention and of its MLP. In the order of the blocks, the input of
each gets a d x d map, by ridge regression toward the input of the dense model's block, which is folded into every
weight that multiplies it; and each output projection is solved again, by ridge regression toward its old weight, so
that the stream after it is the dense model's. For the projection before a cut, which also does the work of the removed
blocks, the whole weight is the unknown: f x d, instead of the d x d of a map that is folded into it.

At the end one factor for all logits is fitted on held-out tokens: a pruned model is wrong more often than the dense
one, but just as confident. The factor is folded into the final norm (Guo et al., On Calibration of Modern Neural
Networks, ICML 2017: temperature scaling).
"""

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from replaceme_core.engine.activations.capture import Activations, Losses, Targets
from replaceme_core.engine.methods.candidates import choose_one_by_one, rank
from replaceme_core.engine.methods.panel import Panel, with_or_without
from replaceme_core.engine.methods.task import Candidate, Pruning, Task
from replaceme_core.engine.model.block_runner import BlockRunner, ProjectionValues, flat, scale_output
from replaceme_core.engine.model.changes import (
    Change,
    Cut,
    FittedCut,
    ReadingChange,
    WeightChange,
    compensate,
    try_changes,
)
from replaceme_core.engine.numerics.solve import solve_delta
from replaceme_core.engine.numerics.stream import Stream, inverse_length_weights, target_before_norm
from replaceme_core.engine.numerics.sums import PRODUCT_DTYPE, SOLVE_DTYPE, Moments
from replaceme_core.families.layout import MapStructure, Weight, Write
from replaceme_core.request.defaults import FOLD_RIDGE, KEPT_INPUT_BYTES, REACH, REFIT_RIDGE
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
        return sorted(task.spec.drop), [Candidate(cut=Cut.of(block), chosen=True) for block in task.spec.drop]
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


@dataclass(frozen=True, kw_only=True)
class Strength:
    """Ridges relative to the mean diagonal of the Gram matrix.

    `anchor`: projections before a cut; `later`: all others after the first cut; `reading`: maps of the inputs of
    blocks after the first cut; `fold`: the map before a cut where the MLP has no single projection.
    """

    anchor: float
    later: float
    reading: float
    fold: float


def refit_kept(
    activations: Activations,
    *,
    removed: Sequence[int],
    strength: Strength,
    fit: Sequence[int],
    judged: Collection[int],
    unchanged_from: int,
    advance: Callable[[float], None],
) -> "Refit":
    """Solve every projection from the first cut to before block `unchanged_from`, which is after the last cut.

    Returns the changes with the streams after the last block, of the batches `judged`. The live model is as before
    afterwards, to the bit. Only the batches `fit` take part, so that the loss on the
    held-out ones `judged`, which are run beside them, is a fair estimate unless they are among them. Raises
    `NumericalFailure` where a projection cannot be solved for.
    """
    block_runner, gone = activations.block_runner, frozenset(removed)
    first = min(gone) - 1
    assert unchanged_from > max(gone), "what is before a cut changes"
    kept = [block for block in range(first, unchanged_from) if block not in gone]
    with try_changes(block_runner.blocks) as put:
        targets = Targets(dense=activations, until=first, batches=fit)
        pruned = Refit(
            block_runner=block_runner,
            strength=strength,
            fit=fit,
            put=put,
            streams={batch: targets.end(batch) for batch in sorted({*fit, *judged})},
        )
        for number, (block, following) in enumerate(zip(kept, [*kept[1:], unchanged_from], strict=True)):
            targets.advance_to(following)
            # up to the last write of the first block the stream is the dense model's: nothing to correct
            pruned.follow(block, targets, end=following - 1, corrects=block != first)
            advance((number + 1) / len(kept))
        pruned.streams = {batch: pruned.streams[batch] for batch in judged}
        for block in range(unchanged_from, len(block_runner.blocks)):
            for batch, stream in pruned.streams.items():
                pruned.streams[batch] = block_runner.run(block, stream)
        return pruned


@dataclass(kw_only=True)
class Refit:
    """The changes so far, and the pruned model's streams before the next block, by batch as these are numbered."""

    block_runner: BlockRunner
    strength: Strength
    fit: Sequence[int]
    put: Callable[[Change], None]
    streams: dict[int, torch.Tensor]
    written: dict[int, list[torch.Tensor]] = field(default_factory=lambda: defaultdict(list))
    """The outputs of the present block's writes so far, by batch."""
    changes: list[Change] = field(default_factory=list)
    folds: list[FittedCut] = field(default_factory=list)

    def follow(self, block: int, targets: Targets, *, end: int, corrects: bool) -> None:
        """Fit the stream after `block` to that of the dense model after `end`, and continue from there.

        Each of its writes in turn: its input, then its output. With `corrects` false the last output alone.
        """
        writes = self.block_runner.writes(block)
        last = len(writes) - 1
        for number, write in enumerate(writes):
            if corrects and write.reads:
                self._read(block, number, write.reads, targets)
            if number == last:
                self._follow_last(block, write, targets, end=end)
            else:
                # the dense stream is known before the last write only
                follows = corrects and number == last - 1
                self._follow_earlier(block, number, write, targets if follows else None)

    def _read(self, block: int, number: int, weights: tuple[Weight, ...], targets: Targets) -> None:
        """Map the input of write `number`, which the `weights` multiply, to its input in the dense model."""
        writes, reader = self.block_runner.writes(block), weights[0].module

        def wanted(batch: int) -> torch.Tensor:
            before = targets.before(batch)
            if number == len(writes) - 1 > 0:
                # the weights before it are not the dense model's any more: what they wrote there, as one of them
                added = (targets.between(batch) - before) / self.block_runner.resolved.scale(writes[0])
                known = [added, *(torch.zeros_like(added) for _ in writes[1:number])]
            else:
                known = self.written[batch]
            return self.block_runner.input_of(block, before, reader, written=known)

        def rows(batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            read = self.block_runner.input_of(block, self.streams[batch], reader, written=self.written[batch])
            return read, read, wanted(batch)

        moments = self._sums(rows, weigh=lambda end: torch.ones_like(end.length))
        change = solve_delta(moments, ridge=self.strength.reading).to(PRODUCT_DTYPE)
        self._made(ReadingChange(block=block, weights=weights, change=change))

    def _sums(
        self,
        rows: Callable[[int], tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
        *,
        weigh: Callable[[Stream], torch.Tensor] = inverse_length_weights,
    ) -> Moments:
        """The sums over the fit batches: of each, `rows` returns inputs (tokens, f), and a stream and its target.

        Both are (tokens, d) or (sequences, positions, d); `weigh` weighs the tokens by the target.
        """
        moments: Moments | None = None
        for batch in self.fit:
            inputs, reached, target = rows(batch)
            kept, end = Stream(flat(reached)), Stream(flat(target))
            if moments is None:
                moments = Moments.zeros(kept.values.shape[1], inputs=inputs.shape[1], device=inputs.device)
            moments.add(inputs, kept=kept, end=end, weights=weigh(end))
        assert moments is not None, "there are no fit tokens"
        return moments

    def _made(self, change: Change) -> None:
        self.put(change)
        self.changes.append(change)

    def _follow_earlier(self, block: int, number: int, write: Write, targets: Targets | None) -> None:
        """Run write `number`, which is not the last; with `targets`, fitted to the dense stream before the last one."""
        read: dict[int, torch.Tensor] = {}
        if targets is not None:
            self._solve(block, number, write, targets.between, ridge=self.strength.later, keep=read)
        for batch, stream in self.streams.items():
            inputs, known = read.pop(batch, None), self.written[batch]
            if inputs is None or write.projection is None:
                known.append(self.block_runner.run_write(block, stream, number, written=known))
            else:
                known.append(self.block_runner.project(block, write.projection, inputs, like=stream))

    def _follow_last(self, block: int, write: Write, targets: Targets, *, end: int) -> None:
        module, number = self.block_runner.blocks[block], len(self.block_runner.writes(block)) - 1
        ridge = self.strength.anchor if end > block else self.strength.later
        delta, read = None, dict[int, torch.Tensor]()
        if write.projection is not None:
            tokens = sum(self.streams[batch].shape[:2].numel() for batch in self.fit)
            keep = read if may_keep(write.projection, module, tokens=tokens) else None
            self._solve(block, number, write, targets.end, ridge=ridge, keep=keep)
        elif end > block:
            delta = self._solve_map(block, targets.end)
            self.folds.append(FittedCut(cut=Cut(start=block + 1, end=end), delta=delta))
        for batch in self.streams:
            stream, written = self.streams[batch], self.written[batch]
            if write.projection is not None and batch in read:
                given = self.block_runner.project(block, write.projection, read.pop(batch), like=stream)
                self.streams[batch] = self.block_runner.with_writes(block, stream, [*written, given])
            elif delta is None:
                self.streams[batch] = self.block_runner.run(block, stream, written=written)
            else:
                kept, output = self.block_runner.run_with_last_write(block, stream, written=written)
                self.streams[batch] = compensate(kept, output, delta=delta)
        self.written.clear()  # before the next block stores its inputs: one of the two is in memory at a time

    def _solve(
        self,
        block: int,
        number: int,
        write: Write,
        targets: Callable[[int], torch.Tensor],
        *,
        ridge: float,
        keep: dict[int, torch.Tensor] | None,
    ) -> None:
        """Solve the projection of write `number`, if it has one; its inputs (tokens, f) are stored in `keep`, by batch.

        A norm after it discards lengths: then the projection is fitted to the direction, and the norm to the size.
        """
        if write.projection is None:
            return
        weight, scale = write.norm, self.block_runner.resolved.scale(write)

        def values(batch: int) -> ProjectionValues:
            return self.block_runner.run_with_projection(
                block, self.streams[batch], number, written=self.written[batch]
            )

        def rows(batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            found = values(batch)
            if keep is not None:
                keep[batch] = found.inputs
            return found.inputs * scale, found.stream, targets(batch)

        def before_norm(batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            found = values(batch)
            assert weight is not None
            size = self._norm(block, weight)  # in memory: it has just run
            wanted = (found.written + flat(targets(batch) - found.stream)).to(PRODUCT_DTYPE) / scale
            target = target_before_norm(wanted, given=found.output.to(PRODUCT_DTYPE), weight=size.to(PRODUCT_DTYPE))
            return found.inputs, found.output, target

        def after_norm(batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            found = values(batch)
            return found.written, found.stream, targets(batch)

        if weight is None:
            self._make_weight(block, write.projection, solve_delta(self._sums(rows), ridge=ridge))
            return
        self._make_weight(block, write.projection, solve_delta(self._sums(before_norm), ridge=ridge))
        stretch = solve_delta(self._sums(after_norm), ridge=self.strength.fold, diagonal=True).diagonal()
        change = (stretch * self._norm(block, weight)).to(PRODUCT_DTYPE)
        self._made(WeightChange(block=block, parameter=weight.path, change=change))

    def _norm(self, block: int, weight: Weight) -> torch.Tensor:
        """The factors (d,) by which a norm multiplies."""
        own = self.block_runner.blocks[block].get_parameter(weight.path)
        return own.to(SOLVE_DTYPE) + (weight.offset or 0.0)

    def _make_weight(self, block: int, projection: Weight, delta: torch.Tensor) -> None:
        """`delta` is (f, d)."""
        change = (delta if projection.axis else delta.T).to(PRODUCT_DTYPE)  # half the memory meanwhile
        self._made(WeightChange(block=block, parameter=projection.path, change=change))

    def _solve_map(self, block: int, targets: Callable[[int], torch.Tensor]) -> torch.Tensor:
        def rows(batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            reached, write = self.block_runner.run_with_last_write(
                block, self.streams[batch], written=self.written[batch]
            )
            return flat(write), reached, targets(batch)

        diagonal = self.block_runner.resolved.structure is MapStructure.DIAGONAL
        return solve_delta(self._sums(rows), ridge=self.strength.fold, diagonal=diagonal)


def may_keep(projection: Weight, block: nn.Module, *, tokens: int) -> bool:
    """Whether the inputs (tokens, f) of the projection of an MLP are small enough to wait for its new weight.

    Else the MLP is run a second time. A fixed limit, not what is free: the same request must give the same bytes.
    """
    shape = block.get_parameter(projection.path).shape
    return tokens * shape[1 - projection.axis] * PRODUCT_DTYPE.itemsize <= KEPT_INPUT_BYTES
