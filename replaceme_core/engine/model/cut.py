"""Cuts, their maps, and the model as it runs with some blocks removed and some maps applied."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch

from replaceme_core.engine.model.block_runner import BlockRunner


@dataclass(frozen=True, kw_only=True, order=True)
class Cut:
    """Blocks `start` to `end`, both included, are removed; the anchor block `start - 1` absorbs the map."""

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
    """A cut and its map T = I + `delta` (d, d), applied to what the MLP of the anchor block writes.

    `delta` is diagonal in families that can absorb diagonal maps only.
    """

    cut: Cut
    delta: torch.Tensor

    def scaled(self, scale: float) -> Self:
        """With `delta` multiplied by `scale`: 1 is the map as it is, 0 plain removal."""
        return self if scale == 1 else replace(self, delta=self.delta * scale)


def windows(blocks: int, length: int) -> list[Cut]:
    """Every run of `length` neighbouring blocks, block 0 excepted."""
    return [Cut(start=start, end=start + length - 1) for start in range(1, blocks - length + 1)]


def compensate(stream: torch.Tensor, write: torch.Tensor, *, delta: torch.Tensor) -> torch.Tensor:
    """`Y + M T = L + M D`: the output of the anchor block as it is once the map is folded. `delta` is D (d, d)."""
    return stream + write @ delta.to(write.dtype)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A model without the blocks `removed`, and with the maps of `folds` applied."""

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
    """Run blocks `since` to `until` as if `done` were folded; returns the stream after `until` and its MLP's write."""
    reached = Variant.of(done).run(block_runner, stream, since=since, until=until)
    return block_runner.run_with_mlp_write(until, reached)
