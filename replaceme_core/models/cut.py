"""A cut, what it takes to replay it, and the model as it runs with some cuts done."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch

from replaceme_core.models.block_runner import BlockwiseModel


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


def windows(blocks: int, length: int) -> list[Cut]:
    """Every run of `length` blocks that leaves block 0."""
    return [Cut(start=start, end=start + length - 1) for start in range(1, blocks - length + 1)]


@dataclass(frozen=True, kw_only=True)
class HeldOutStreams:
    """The stream before each keeper on the held-out tokens, batch by batch: where a replay starts."""

    tokens: Sequence[torch.Tensor]
    before: Mapping[int, Sequence[torch.Tensor]]
    last: Sequence[torch.Tensor]
    """After the last block of the dense model; empty if the pass stopped before it."""


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
