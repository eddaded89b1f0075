"""Refit the projections of the blocks that stay, so that the pruned model's stream follows the dense model's.

Once blocks are removed, every later block reads a stream that it was not trained on. It reads the stream through two
sets of linear maps and writes to it through two more: those of its attention and of its MLP. In the order of the
blocks, the input of each gets a d x d map, by ridge regression toward the input of the dense model's block, which is
folded into every weight that multiplies it; and each output projection is solved again, by ridge regression toward its
old weight, so that the stream after it is the dense model's. For the projection before a cut, which also does the work
of the removed blocks, the whole weight is the unknown: f x d, instead of the d x d of a map that is folded into it
(docs/explanation/method.md, "The map").
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from replaceme_core.engine.activations.capture import Activations, DenseTargets, Targets
from replaceme_core.engine.model.block_runner import BlockRunner
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
from replaceme_core.families.layout import MapStructure
from replaceme_core.families.resolve import NormedWrite, Projection, Reading
from replaceme_core.request.defaults import KEPT_INPUT_BYTES


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


@dataclass(frozen=True, kw_only=True)
class Refit:
    """The changes, and the pruned model's stream after its last block, by held-out batch as these are numbered."""

    changes: Sequence[Change]
    folds: Sequence[FittedCut]
    streams: Mapping[int, torch.Tensor]


def refit_kept(
    block_runner: BlockRunner,
    activations: Activations,
    *,
    removed: Sequence[int],
    strength: Strength,
    fit: Sequence[int],
    judged: Collection[int],
    unchanged_from: int,
    advance: Callable[[float], None],
) -> Refit:
    """Solve every projection from the first cut to before block `unchanged_from`, which is after the last cut.

    The live model is as before afterwards, to the bit. Only the batches `fit` take part, so that the loss on the
    held-out ones `judged`, which are run beside them, is a fair estimate unless they are among them. Raises
    `NumericalFailure` where a projection cannot be solved for.
    """
    gone, blocks = frozenset(removed), len(block_runner.blocks)
    first = min(gone) - 1
    assert unchanged_from > max(gone), "what is before a cut changes"
    kept = [block for block in range(first, unchanged_from) if block not in gone]
    with try_changes(block_runner.blocks) as put:
        dense = DenseTargets(dense=activations, block=first)
        pruned = _Pruned(
            block_runner=block_runner,
            activations=activations,
            strength=strength,
            fit=fit,
            put=put,
            streams={batch: dense.stream(batch) for batch in sorted({*fit, *judged})},
        )
        for number, (block, following) in enumerate(zip(kept, [*kept[1:], unchanged_from], strict=True)):
            targets = dense.advance_to(following)
            if block == first:  # up to here the stream is the dense model's: nothing to correct
                pruned.leave_attention(block)
            else:
                pruned.read_attention(block, targets)
                pruned.follow_attention(block, targets)
                pruned.read_mlp(block, targets)
            pruned.follow_block(block, targets, end=following - 1)
            advance((number + 1) / len(kept))
        streams = {batch: pruned.streams[batch] for batch in judged}
        for block in range(unchanged_from, blocks):
            for batch, stream in streams.items():
                streams[batch] = block_runner.run(block, stream)
        return Refit(changes=pruned.changes, folds=pruned.folds, streams=streams)


@dataclass(kw_only=True)
class _Pruned:
    """The pruned model's stream before the next block on the batches that are run, and the changes so far."""

    block_runner: BlockRunner
    activations: Activations
    strength: Strength
    fit: Sequence[int]
    put: Callable[[Change], None]
    streams: dict[int, torch.Tensor]
    written: dict[int, torch.Tensor] = field(default_factory=dict)
    """The output of the present block's attention, from `leave_attention` to the end of `follow_block`."""
    changes: list[Change] = field(default_factory=list)
    folds: list[FittedCut] = field(default_factory=list)

    def read_attention(self, block: int, targets: Targets) -> None:
        """Map the input of the attention to its input in the dense model."""
        reading = self.block_runner.resolved.attention_reading(self.block_runner.blocks[block])
        self._read(
            block, reading, lambda batch: self.block_runner.input_of(block, targets.before(batch), reading.module)
        )

    def read_mlp(self, block: int, targets: Targets) -> None:
        """The same for the MLP; the attention comes first, since most MLPs read what it writes."""
        reading = self.block_runner.resolved.mlp_reading(self.block_runner.blocks[block])

        def wanted(batch: int) -> torch.Tensor:
            before = targets.before(batch)
            # the attention's weights are not the dense model's any more
            written = (targets.between(batch) - before) / self.block_runner.resolved.write_scale
            return self.block_runner.input_of(block, before, reading.module, written=written)

        self._read(block, reading, wanted, written=self.written)

    def _read(
        self,
        block: int,
        reading: Reading,
        wanted: Callable[[int], torch.Tensor],
        *,
        written: Mapping[int, torch.Tensor] | None = None,
    ) -> None:
        def rows(batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            given = None if written is None else written[batch]
            read = self.block_runner.input_of(block, self.streams[batch], reading.module, written=given)
            return read, read, wanted(batch)

        moments = self._sums(rows, weigh=lambda end: torch.ones_like(end.length))
        change = solve_delta(moments, ridge=self.strength.reading).to(PRODUCT_DTYPE)
        self._made(
            ReadingChange(block=block, parameters=reading.parameters, transposed=reading.transposed, change=change)
        )

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
            kept, end = Stream(_flat(reached)), Stream(_flat(target))
            if moments is None:
                moments = Moments.zeros(kept.values.shape[1], inputs=inputs.shape[1], device=inputs.device)
            moments.add(inputs, kept=kept, end=end, weights=weigh(end))
        assert moments is not None, "there are no fit tokens"
        return moments

    def _made(self, change: Change) -> None:
        self.put(change)
        self.changes.append(change)

    def follow_attention(self, block: int, targets: Targets) -> None:
        """Fit the stream between attention and MLP to that of the dense model, and run the attention."""
        module = self.block_runner.blocks[block]
        projection = self.block_runner.resolved.attention_projection(module)
        normed = self.block_runner.resolved.normed_write(module, attention=True)
        read: dict[int, torch.Tensor] = {}
        if projection is not None:
            self._change(block, projection, targets.between, ridge=self.strength.later, attention=True, keep=read)
        elif normed is not None:
            self._turn(block, normed, targets.between, ridge=self.strength.later, attention=True)
        self.leave_attention(block, read)

    def leave_attention(self, block: int, read: dict[int, torch.Tensor] | None = None) -> None:
        """Store the attention's output on these batches; `read` is the input of its projection, where that is known."""
        projection = self.block_runner.resolved.attention_projection(self.block_runner.blocks[block])
        for batch, stream in self.streams.items():
            inputs = read.pop(batch, None) if read else None
            if projection is None or inputs is None:
                self.written[batch] = self.block_runner.run_attention(block, stream)
            else:
                self.written[batch] = self.block_runner.project(block, projection.module, inputs, like=stream)

    def follow_block(self, block: int, targets: Targets, *, end: int) -> None:
        """Fit the stream after `block` to that of the dense model after `end`, and continue from there."""
        module = self.block_runner.blocks[block]
        projection = self.block_runner.resolved.mlp_projection(module)
        normed = self.block_runner.resolved.normed_write(module, attention=False)
        ridge = self.strength.anchor if end > block else self.strength.later
        delta, read = None, dict[int, torch.Tensor]()
        if projection is not None:
            tokens = sum(self.streams[batch].shape[:2].numel() for batch in self.fit)
            keep = read if may_keep(projection, module, tokens=tokens) else None
            self._change(block, projection, targets.end, ridge=ridge, attention=False, keep=keep)
        elif normed is not None:
            self._turn(block, normed, targets.end, ridge=ridge, attention=False)
        elif end > block:
            delta = self._solve_map(block, targets.end)
            self.folds.append(FittedCut(cut=Cut(start=block + 1, end=end), delta=delta))
        for batch, written in self.written.items():
            stream = self.streams[batch]
            if projection is not None and batch in read:
                write = self.block_runner.project(block, projection.module, read.pop(batch), like=stream)
                self.streams[batch] = stream + (written + write) * self.block_runner.resolved.write_scale
            elif delta is None:
                self.streams[batch] = self.block_runner.run(block, stream, written=written)
            else:
                kept, write = self.block_runner.run_with_mlp_write(block, stream, written=written)
                self.streams[batch] = compensate(kept, write, delta=delta)
        self.written.clear()  # before the next attention stores its input: one of the two is in memory at a time

    def _turn(
        self, block: int, write: NormedWrite, targets: Callable[[int], torch.Tensor], *, ridge: float, attention: bool
    ) -> None:
        """A norm discards lengths: fit the projection before it to the direction, then the norm to the size."""
        scale = self.block_runner.resolved.write_scale

        def before_norm(batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            read, given, written, reached = self._normed(block, write, batch, attention=attention)
            weight = write.norm.get_parameter("weight").to(PRODUCT_DTYPE) + write.offset  # in memory: it has just run
            wanted = (written + _flat(targets(batch) - reached)).to(PRODUCT_DTYPE) / scale
            return read, given, target_before_norm(wanted, given=given.to(PRODUCT_DTYPE), weight=weight)

        def after_norm(batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            _, _, written, reached = self._normed(block, write, batch, attention=attention)
            return written, reached, targets(batch)

        self._make_weight(block, write.projection, solve_delta(self._sums(before_norm), ridge=ridge))
        stretch = solve_delta(self._sums(after_norm), ridge=self.strength.fold, diagonal=True).diagonal()
        weight = write.norm.get_parameter("weight").to(SOLVE_DTYPE) + write.offset
        change = (stretch * weight).to(PRODUCT_DTYPE)
        self._made(WeightChange(block=block, parameter=write.parameter, change=change))

    def _normed(
        self, block: int, write: NormedWrite, batch: int, *, attention: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        written = None if attention else self.written[batch]
        return self.block_runner.run_with_norm(
            block, self.streams[batch], write.projection.module, write.norm, attention=attention, written=written
        )

    def _change(
        self,
        block: int,
        projection: Projection,
        targets: Callable[[int], torch.Tensor],
        *,
        ridge: float,
        attention: bool,
        keep: dict[int, torch.Tensor] | None = None,
    ) -> None:
        """Solve one output projection; its inputs (tokens, f) are stored in `keep`, batch by batch."""

        def rows(batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            written = None if attention else self.written[batch]
            inputs, reached = self.block_runner.run_with_projection_input(
                block, self.streams[batch], projection.module, attention=attention, written=written
            )
            if keep is not None:
                keep[batch] = inputs
            return inputs * self.block_runner.resolved.write_scale, reached, targets(batch)

        self._make_weight(block, projection, solve_delta(self._sums(rows), ridge=ridge))

    def _make_weight(self, block: int, projection: Projection, delta: torch.Tensor) -> None:
        """`delta` is (f, d)."""
        change = (delta if projection.transposed else delta.T).to(PRODUCT_DTYPE)  # half the memory meanwhile
        self._made(WeightChange(block=block, parameter=projection.parameter, change=change))

    def _solve_map(self, block: int, targets: Callable[[int], torch.Tensor]) -> torch.Tensor:
        def rows(batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            reached, write = self.block_runner.run_with_mlp_write(
                block, self.streams[batch], written=self.written[batch]
            )
            return _flat(write), reached, targets(batch)

        diagonal = self.block_runner.resolved.structure is MapStructure.DIAGONAL
        return solve_delta(self._sums(rows), ridge=self.strength.fold, diagonal=diagonal)


def _flat(values: torch.Tensor) -> torch.Tensor:
    """As (tokens, width)."""
    return values.reshape(-1, values.shape[-1])


def may_keep(projection: Projection, block: nn.Module, *, tokens: int) -> bool:
    """Whether the inputs (tokens, f) of the projection of an MLP are small enough to wait for its new weight.

    Else the MLP is run a second time. A fixed limit, not what is free: the same request must give the same bytes.
    """
    shape = block.get_parameter(projection.parameter).shape
    return tokens * shape[0 if projection.transposed else 1] * PRODUCT_DTYPE.itemsize <= KEPT_INPUT_BYTES
