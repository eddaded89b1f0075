"""One pass over the calibration tokens, from which every candidate cut can be scored (method.md, section 4).

Nothing after the last wanted block is run, and no logits are computed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import torch

from replaceme_core.families.resolve import ResolvedModel
from replaceme_core.modeling.blockwise import BlockwiseModel
from replaceme_core.numerics.distance import MeanAngle
from replaceme_core.numerics.moments import Moments
from replaceme_core.numerics.sinks import token_weights
from replaceme_core.numerics.stream import Stream
from replaceme_core.numerics.structure import MapStructure
from replaceme_core.numerics.sums import EndSums, WriteSums


@dataclass(frozen=True, kw_only=True, order=True)
class Cut:
    """Blocks `start` to `end`, both included, are removed; block `start - 1` takes over their work."""

    start: int
    end: int

    @property
    def keeper(self) -> int:
        return self.start - 1

    @property
    def blocks(self) -> range:
        return range(self.start, self.end + 1)

    def __str__(self) -> str:
        return f"{self.start}-{self.end}"


@dataclass(frozen=True, kw_only=True)
class FittedCut:
    """A cut and its map T = I + `delta` (d, d), applied to what the keeper's MLP writes.

    Where the family takes over diagonal maps only, `delta` is diagonal.
    """

    cut: Cut
    delta: torch.Tensor

    def scaled(self, scale: float) -> Self:
        """With a part of the change: 1 as it is, 0 plain removal."""
        return self if scale == 1 else replace(self, delta=self.delta * scale)


@dataclass(kw_only=True)
class CutStatistics:
    """What one candidate needs: sums over the fit tokens and over the held-out tokens, and the distance it spans."""

    cut: Cut
    fit: Moments
    held_out: Moments
    structure: MapStructure = MapStructure.FULL
    angle: MeanAngle = field(default_factory=MeanAngle)
    sinks: int = 0


@dataclass(frozen=True, kw_only=True)
class KeeperSums:
    """What every cut after one block has in common: sums of what its MLP writes."""

    fit: WriteSums
    held_out: WriteSums

    @classmethod
    def empty(cls, resolved: ResolvedModel, *, fit: bool = True, held_out: bool = True) -> Self:
        """Sums over tokens that do not come take no room."""
        width, device = resolved.model.config.hidden_size, resolved.model.device
        first, second = (WriteSums.zeros(width if comes else 0, device=device) for comes in (fit, held_out))
        return cls(fit=first, held_out=second)

    def add(self, *, write: torch.Tensor, kept: Stream, held_out: bool) -> None:
        """Add a batch: `write` (batch, positions, d) and the stream after the block."""
        (self.held_out if held_out else self.fit).add(write.flatten(0, 1), weights=token_weights(kept))


@dataclass(kw_only=True)
class CutSums:
    """What a cut adds to the sums of its keeper. Tokens that are sinks at either end count for less."""

    cut: Cut
    fit: EndSums
    held_out: EndSums
    structure: MapStructure
    angle: MeanAngle = field(default_factory=MeanAngle)
    sinks: int = 0

    @classmethod
    def empty(cls, cut: Cut, *, resolved: ResolvedModel, fit: bool = True, held_out: bool = True) -> Self:
        """As `KeeperSums.empty`."""
        width, device = resolved.model.config.hidden_size, resolved.model.device
        first, second = (EndSums.zeros(width if comes else 0, device=device) for comes in (fit, held_out))
        return cls(cut=cut, fit=first, held_out=second, structure=resolved.structure)

    def add(self, *, write: torch.Tensor, kept: Stream, end: Stream, held_out: bool) -> None:
        """Add a batch: `write` (batch, positions, d) and the streams at both ends."""
        own = token_weights(kept)
        weights = torch.minimum(own, token_weights(end))
        self.sinks += int((weights < 1).sum())
        self.angle.add(kept, end, mask=weights == 1)
        sums = self.held_out if held_out else self.fit
        sums.add(write.flatten(0, 1), kept=kept, end=end, weights=weights, own=own)

    def statistics(self, keeper: KeeperSums) -> CutStatistics:
        return CutStatistics(
            cut=self.cut,
            fit=self.fit.moments(keeper.fit),
            held_out=self.held_out.moments(keeper.held_out),
            structure=self.structure,
            angle=self.angle,
            sinks=self.sinks,
        )


def windows(blocks: int, length: int) -> list[Cut]:
    """Every run of `length` blocks that leaves block 0."""
    return [Cut(start=start, end=start + length - 1) for start in range(1, blocks - length + 1)]


HELD_OUT_BATCHES = 8
"""Held-out sequences come in at least so many batches, so that a replay may begin with a part of them."""


def schedule(fit: torch.Tensor, held_out: torch.Tensor, batch_size: int) -> list[tuple[torch.Tensor, bool]]:
    """The batches of a pass in order, each with whether it is held out."""
    small = min(batch_size, max(1, len(held_out) // HELD_OUT_BATCHES))
    return [(batch, False) for batch in fit.split(batch_size)] + [(batch, True) for batch in held_out.split(small)]


@dataclass(frozen=True, kw_only=True)
class HeldOutStreams:
    """The stream before each keeper on the held-out tokens, batch by batch: where a replay starts."""

    tokens: Sequence[torch.Tensor]
    before: Mapping[int, Sequence[torch.Tensor]]
    last: Sequence[torch.Tensor]
    """After the last block of the dense model; empty if the pass stopped before it."""


def capture_next_cut(
    blockwise: BlockwiseModel,
    cut: Cut,
    *,
    done: Sequence[FittedCut],
    fit: torch.Tensor,
    held_out: torch.Tensor,
    batch_size: int,
    advance: Callable[[float], None],
) -> CutStatistics:
    """Statistics of one `cut` whose prefix is already pruned by `done`, toward the dense model's stream at its end.

    Fitting every map on the unpruned model (as the reference does) would fit later maps to inputs they never see.
    """
    device = blockwise.resolved.model.device
    keeper, sums = KeeperSums.empty(blockwise.resolved), CutSums.empty(cut, resolved=blockwise.resolved)
    work = schedule(fit, held_out, batch_size)
    total = fit.numel() + held_out.numel()
    count = 0
    for batch, is_held_out in work:
        start = blockwise.enter(batch.to(device))
        pruned, write = run_pruned(blockwise, start, done=done, until=cut.keeper)
        dense, first = (start, 0) if done else (pruned, cut.start)
        for block in range(first, cut.end + 1):
            dense = blockwise.run(block, dense)
        kept, end = Stream(pruned.flatten(0, 1)), Stream(dense.flatten(0, 1))
        keeper.add(write=write, kept=kept, held_out=is_held_out)
        sums.add(write=write, kept=kept, end=end, held_out=is_held_out)
        count += batch.numel()
        advance(count / total)
    return sums.statistics(keeper)


def run_pruned(
    blockwise: BlockwiseModel, stream: torch.Tensor, *, done: Sequence[FittedCut], until: int, since: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run blocks `since` to `until` as if `done` were folded; the stream after `until` and what its MLP wrote."""
    removed = {block for fitted in done for block in fitted.cut.blocks}
    deltas = {fitted.cut.keeper: fitted.delta for fitted in done}
    for block in range(since, until):
        if block in deltas:
            stream, write = blockwise.run_tapped(block, stream)
            stream = compensate(stream, write, delta=deltas[block])
        elif block not in removed:
            stream = blockwise.run(block, stream)
    return blockwise.run_tapped(until, stream)


def compensate(stream: torch.Tensor, write: torch.Tensor, *, delta: torch.Tensor) -> torch.Tensor:
    """`Y + M T = L + M D`: the keeper's output as it will be once the map is folded."""
    return stream + write @ delta.to(write.dtype)
