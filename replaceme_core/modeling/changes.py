"""Changes to the weights of blocks that stay, apart from the model that they were found on."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from replaceme_core.errors import NumericalFailure
from replaceme_core.families.resolve import ResolvedModel
from replaceme_core.modeling.skeleton import BlockReader, changed, loaded, reader_of
from replaceme_core.numerics.moments import SOLVE_DTYPE


@dataclass(frozen=True, kw_only=True)
class WeightChange:
    """`change` is added to the parameter at the dotted path `parameter` of source block `block`; same shape."""

    block: int
    parameter: str
    change: torch.Tensor


@contextmanager
def try_changes(blocks: nn.ModuleList) -> Iterator[Callable[[WeightChange], None]]:
    """Lets changes be tried on a live model, whole or read block by block; its own weights are back afterwards."""
    originals: list[tuple[nn.Parameter, torch.Tensor]] = []
    readers: list[BlockReader] = []

    def put(one: WeightChange) -> None:
        reader = reader_of(blocks[one.block])
        if reader is not None:
            readers.append(reader)
            reader.change(one.parameter, one.change)
            return
        weight = blocks[one.block].get_parameter(one.parameter)
        originals.append((weight, weight.data))
        weight.data = changed(weight.data, one.change)

    try:
        yield put
    finally:
        for weight, data in reversed(originals):
            weight.data = data
        for reader in readers:
            reader.restore()


@torch.no_grad()
def apply_changes(resolved: ResolvedModel, changes: Sequence[WeightChange]) -> None:
    """Add all `changes` in place, in float64, cast once. Raises `NumericalFailure` where the dtype cannot hold one."""
    for one in changes:
        weight = loaded(resolved.blocks[one.block]).get_parameter(one.parameter)
        sums = (weight.to(SOLVE_DTYPE) + one.change.to(weight.device, SOLVE_DTYPE)).to(weight.dtype)
        if not torch.isfinite(sums).all():
            raise NumericalFailure(
                f"{one.parameter} of block {one.block} does not fit into {weight.dtype} after its change; "
                "try a larger ridge"
            )
        weight.copy_(sums)
