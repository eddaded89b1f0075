"""Changes to the weights of blocks that stay, as values that can be tried, stored and applied."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from replaceme_core.engine.model.lazy_model import BlockReader, block_reader, load_block
from replaceme_core.engine.numerics.moments import PRODUCT_DTYPE, SOLVE_DTYPE
from replaceme_core.errors import NumericalFailure
from replaceme_core.families.resolve import ResolvedModel


@dataclass(frozen=True, kw_only=True)
class WeightChange:
    """`change` is added to the parameter at the dotted path `parameter` of block `block` of the source; same shape."""

    block: int
    parameter: str
    change: torch.Tensor

    @property
    def parameters(self) -> tuple[str, ...]:
        return (self.parameter,)

    def applied(self, weight: torch.Tensor, *, dtype: torch.dtype) -> torch.Tensor:
        """The changed `weight`, computed in `dtype`."""
        return weight.to(dtype) + self.change.to(weight.device, dtype)


@dataclass(frozen=True, kw_only=True)
class ReadingChange:
    """The input of `parameters` of block `block` of the source is multiplied by I + `change` (d, d) first.

    The map is folded into the parameters, which are (..., d) each, or (d, f) where `transposed`.
    """

    block: int
    parameters: tuple[str, ...]
    transposed: bool
    change: torch.Tensor

    def applied(self, weight: torch.Tensor, *, dtype: torch.dtype) -> torch.Tensor:
        """The changed `weight`, computed in `dtype`."""
        wide, change = weight.to(dtype), self.change.to(weight.device, dtype)
        return wide + (change @ wide if self.transposed else wide @ change.T)


Change = WeightChange | ReadingChange


@contextmanager
def try_changes(blocks: nn.ModuleList) -> Iterator[Callable[[Change], None]]:
    """Yields a function that applies a change to a live model, loaded whole or lazily; undone when the context ends."""
    originals: list[tuple[nn.Parameter, torch.Tensor]] = []
    readers: list[BlockReader] = []

    def put(one: Change) -> None:
        reader = block_reader(blocks[one.block])
        if reader is not None:
            readers.append(reader)
            for parameter in one.parameters:
                reader.change(parameter, partial(_tried, one))
            return
        for parameter in one.parameters:
            weight = blocks[one.block].get_parameter(parameter)
            originals.append((weight, weight.data))
            weight.data = _tried(one, weight.data)

    try:
        yield put
    finally:
        for weight, data in reversed(originals):
            weight.data = data
        for reader in readers:
            reader.restore()


def _tried(one: Change, weight: torch.Tensor) -> torch.Tensor:
    return one.applied(weight, dtype=torch.promote_types(weight.dtype, PRODUCT_DTYPE)).to(weight.dtype)


@torch.no_grad()
def apply_changes(resolved: ResolvedModel, changes: Sequence[Change]) -> None:
    """Apply `changes` in place, in float64, cast once. Raises `NumericalFailure` if the dtype cannot hold a result."""
    for one in changes:
        block = load_block(resolved.blocks[one.block])
        for parameter in one.parameters:
            weight = block.get_parameter(parameter)
            values = one.applied(weight, dtype=SOLVE_DTYPE).to(weight.dtype)
            if not torch.isfinite(values).all():
                raise NumericalFailure(
                    f"{parameter} of block {one.block} overflows {weight.dtype} after its change; try a larger ridge"
                )
            weight.copy_(values)
