"""What a decision changes: cuts with their maps, changes of weights, and removed blocks.

It is tried on a live model, which is left as it was, and then made for good on the weights as they are stored.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Self

import torch
from pydantic import InstanceOf
from torch import nn

from replaceme_core.engine.model.block_runner import BlockRunner
from replaceme_core.engine.model.lazy_model import ModelFiles, files_of, load_block
from replaceme_core.engine.numerics.solve import folded
from replaceme_core.engine.numerics.sums import PRODUCT_DTYPE, SOLVE_DTYPE
from replaceme_core.errors import NumericalFailure
from replaceme_core.families.layout import Weight, follow_blocks
from replaceme_core.families.resolve import ResolvedModel, along, with_biases
from replaceme_core.request.removal import runs_of


@dataclass(frozen=True, kw_only=True, order=True)
class Cut:
    """Blocks `start` to `end`, both included, are removed; the anchor block `start - 1` absorbs the map."""

    start: int
    end: int

    @classmethod
    def of(cls, block: int) -> Self:
        """Of one block."""
        return cls(start=block, end=block)

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
    """A cut and its map T = I + `delta` (d, d), applied to the last write of the anchor block, its MLP's.

    `delta` is diagonal in families that can absorb diagonal maps only.
    """

    cut: Cut
    delta: InstanceOf[torch.Tensor]


def windows(blocks: int, length: int) -> list[Cut]:
    """Every run of `length` neighbouring blocks, block 0 excepted."""
    return [Cut(start=start, end=start + length - 1) for start in range(1, blocks - length + 1)]


def runs(drop: Sequence[int]) -> list[Cut]:
    """Neighbouring blocks together, in order.

    >>> [str(cut) for cut in runs([3, 12, 13])]
    ['3-3', '12-13']
    """
    return [Cut(start=first, end=last) for first, last in runs_of(drop)]


def compensate(stream: torch.Tensor, write: torch.Tensor, *, delta: torch.Tensor) -> torch.Tensor:
    """`Y + M T = L + M D`: the output of the anchor block as it is once the map is folded. `delta` is D (d, d)."""
    return stream + write @ delta.to(write.dtype)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A model without the blocks `removed`, and with the maps of `folds` applied.

    The live blocks `changed` have other weights than those of the dense model.
    """

    removed: frozenset[int]
    folds: tuple[FittedCut, ...] = ()
    changed: frozenset[int] = frozenset()

    @classmethod
    def of(cls, folds: Sequence[FittedCut]) -> "Variant":
        return cls(removed=frozenset(block for one in folds for block in one.cut.blocks), folds=tuple(folds))

    @property
    def first(self) -> int:
        """The first block at which it differs from the dense model."""
        return min([*self.removed, *self.changed, *(one.cut.anchor for one in self.folds)])

    def run(
        self, block_runner: BlockRunner, stream: torch.Tensor, *, since: int, until: int | None = None
    ) -> torch.Tensor:
        """The stream before block `until`, or after the last one, from the stream before block `since`."""
        deltas = {one.cut.anchor: one.delta for one in self.folds}
        for block in range(since, len(block_runner.blocks) if until is None else until):
            if block in self.removed:
                continue
            if block in deltas:
                kept, write = block_runner.run_with_last_write(block, stream)
                stream = compensate(kept, write, delta=deltas[block])
            else:
                stream = block_runner.run(block, stream)
        return stream


def run_pruned(
    block_runner: BlockRunner, stream: torch.Tensor, *, done: Sequence[FittedCut], until: int, since: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run blocks `since` to `until` as if `done` were folded; returns the stream after `until` and its last write."""
    reached = Variant.of(done).run(block_runner, stream, since=since, until=until)
    return block_runner.run_with_last_write(until, reached)


@dataclass(frozen=True, kw_only=True)
class WeightChange:
    """`change` is added to the parameter at the dotted path `parameter` of block `block` of the source; same shape."""

    block: int
    parameter: str
    change: InstanceOf[torch.Tensor]

    @property
    def parameters(self) -> tuple[str, ...]:
        return (self.parameter,)

    def applied(self, _parameter: str, values: torch.Tensor, *, dtype: torch.dtype) -> torch.Tensor:
        """The changed `values` of a parameter, computed in `dtype`."""
        return values.to(dtype) + self.change.to(values.device, dtype)


@dataclass(frozen=True, kw_only=True)
class ReadingChange:
    """The input of `weights` of block `block` of the source is multiplied by I + `change` (d, d) first.

    The map is folded into the weights, along their axes of the stream.
    """

    block: int
    weights: tuple[Weight, ...]
    change: InstanceOf[torch.Tensor]

    @property
    def parameters(self) -> tuple[str, ...]:
        return tuple(weight.path for weight in self.weights)

    def applied(self, parameter: str, values: torch.Tensor, *, dtype: torch.dtype) -> torch.Tensor:
        """The changed `values` of a parameter, computed in `dtype`."""
        axis = next(weight.axis for weight in self.weights if weight.path == parameter)
        wide = values.to(dtype)
        return wide + along(wide, self.change.to(values.device, dtype).T, axis=axis)


Change = WeightChange | ReadingChange


@contextmanager
def try_changes(blocks: nn.ModuleList) -> Iterator[Callable[[Change], None]]:
    """Yields a function that applies a change to a live model, loaded whole or lazily; undone when the context ends."""
    originals: list[tuple[nn.Parameter, torch.Tensor]] = []
    read: list[tuple[ModelFiles, int]] = []

    def put(one: Change) -> None:
        if (found := files_of(blocks[one.block])) is not None:
            read.append(found)
            files, index = found
            for parameter in one.parameters:
                files.change(index, parameter, partial(_tried, one, parameter))
            return
        for parameter in one.parameters:
            weight = blocks[one.block].get_parameter(parameter)
            originals.append((weight, weight.data))
            weight.data = _tried(one, parameter, weight.data)

    try:
        yield put
    finally:
        for weight, data in reversed(originals):
            weight.data = data
        for files, index in read:
            files.restore(index)


def _tried(one: Change, parameter: str, values: torch.Tensor) -> torch.Tensor:
    return one.applied(parameter, values, dtype=torch.promote_types(values.dtype, PRODUCT_DTYPE)).to(values.dtype)


@torch.no_grad()
def apply_changes(resolved: ResolvedModel, changes: Sequence[Change]) -> None:
    """Apply `changes` in place, in float64, cast once. Raises `NumericalFailure` if the dtype cannot hold a result."""
    for one in changes:
        block = load_block(resolved.blocks[one.block])
        for parameter in one.parameters:
            weight = block.get_parameter(parameter)
            values = one.applied(parameter, weight, dtype=SOLVE_DTYPE).to(weight.dtype)
            if not torch.isfinite(values).all():
                raise NumericalFailure(
                    f"{parameter} of block {one.block} overflows {weight.dtype} after its change; try a larger ridge"
                )
            weight.copy_(values)


def kept_blocks(blocks: int, removed: Sequence[int]) -> list[int]:
    """The indices of the blocks that stay, in order."""
    return sorted({*range(blocks)}.difference(removed))


@torch.no_grad()
def fold(resolved: ResolvedModel, fitted: FittedCut) -> None:
    """Fold the map into all weights of the anchor block that absorb it, in place."""
    block = load_block(resolved.blocks[fitted.cut.anchor])
    for weight in with_biases(block, resolved.writes(block)[-1].folds):
        parameter = block.get_parameter(weight.path)
        # Experts one at a time: all in float64 at once would be four times their size.
        if parameter.dim() > 2 and weight.axis > 0:
            for expert in parameter:
                expert.copy_(folded(expert, delta=fitted.delta, axis=weight.axis - 1))
        else:
            parameter.copy_(folded(parameter, delta=fitted.delta, axis=weight.axis, offset=weight.offset))


@torch.no_grad()
def scale_final_norm(resolved: ResolvedModel, scale: float) -> None:
    """Multiply the output of the final norm by `scale`: its weight (and bias) in place, in float64, cast once."""
    norm, weight = resolved.final_norm, resolved.layout.final_norm
    if scale == 1 or norm is None or weight is None:
        return
    for name, parameter in norm.named_parameters():
        shift = weight.offset or 0.0 if name == "weight" else 0.0
        parameter.copy_((parameter.to(SOLVE_DTYPE) + shift) * scale - shift)


def remove_blocks(resolved: ResolvedModel, removed: Sequence[int]) -> None:
    """Remove blocks in place: the others get new slots in the KV cache, and the config describes those that stay."""
    kept = kept_blocks(len(resolved.blocks), removed)
    for index in sorted(set(removed), reverse=True):
        del resolved.blocks[index]
    for slot, block in enumerate(resolved.blocks):
        for module in block.modules():
            if isinstance(vars(module).get("layer_idx"), int):
                vars(module)["layer_idx"] = slot
    follow_blocks(resolved.config, layout=resolved.layout, kept=kept)
