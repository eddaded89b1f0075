"""A cut, what it takes to replay it, and the model as it runs with some cuts done."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch

from replaceme_core.models.block_runner import BlockRunner


@dataclass(frozen=True, kw_only=True, order=True)
class Cut:
    """Blocks `start` to `end`, both included, are removed; block `start - 1` takes over their work."""

    start: int
    end: int

    @property
    def anchor(self) -> int:
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


def compensate(stream: torch.Tensor, write: torch.Tensor, *, delta: torch.Tensor) -> torch.Tensor:
    """`Y + M T = L + M D`: the keeper's output as it will be once the map is folded."""
    return stream + write @ delta.to(write.dtype)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A model without the blocks `removed`, and with the maps of `folds` in place."""

    removed: frozenset[int]
    folds: tuple[FittedCut, ...] = ()

    @classmethod
    def of(cls, folds: Sequence[FittedCut]) -> "Variant":
        return cls(removed=frozenset(block for one in folds for block in one.cut.blocks), folds=tuple(folds))

    @property
    def first(self) -> int:
        """The first block at which it differs from the dense model."""
        return min([*self.removed, *(one.cut.anchor for one in self.folds)])

    def run(
        self, block_runner: BlockRunner, stream: torch.Tensor, *, since: int, until: int | None = None
    ) -> torch.Tensor:
        """The stream before block `until`, or after the last one, from the stream before block `since`."""
        deltas = {one.cut.anchor: one.delta for one in self.folds}
        for block in range(since, len(block_runner.blocks) if until is None else until):
            if block in self.removed:
                continue
            if block in deltas:
                kept, write = block_runner.run_with_mlp_write(block, stream)
                stream = compensate(kept, write, delta=deltas[block])
            else:
                stream = block_runner.run(block, stream)
        return stream


def run_pruned(
    block_runner: BlockRunner, stream: torch.Tensor, *, done: Sequence[FittedCut], until: int, since: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run blocks `since` to `until` as if `done` were folded; the stream after `until` and what its MLP wrote."""
    reached = Variant.of(done).run(block_runner, stream, since=since, until=until)
    return block_runner.run_with_mlp_write(until, reached)
