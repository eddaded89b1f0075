"""Changes to the weights of blocks that stay, apart from the model that they were found on."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from replaceme_core.errors import NumericalFailure
from replaceme_core.families.resolve import ResolvedModel
from replaceme_core.numerics.moments import SOLVE_DTYPE


@dataclass(frozen=True, kw_only=True)
class WeightChange:
    """`change` is added to the parameter at the dotted path `parameter` of source block `block`; same shape."""

    block: int
    parameter: str
    change: torch.Tensor


@torch.no_grad()
def apply_changes(resolved: ResolvedModel, changes: Sequence[WeightChange]) -> None:
    """Add all `changes` in place, in float64, cast once. Raises `NumericalFailure` where the dtype cannot hold one."""
    for one in changes:
        weight = resolved.blocks[one.block].get_parameter(one.parameter)
        changed = (weight.to(SOLVE_DTYPE) + one.change.to(weight.device, SOLVE_DTYPE)).to(weight.dtype)
        if not torch.isfinite(changed).all():
            raise NumericalFailure(
                f"{one.parameter} of block {one.block} does not fit into {weight.dtype} after its change; "
                "try a larger ridge"
            )
        weight.copy_(changed)
