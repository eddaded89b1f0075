"""Fold a linear map into the projection before it. Knows tensors only."""

import torch

from replaceme_core.errors import NumericalFailure
from replaceme_core.numerics.moments import SOLVE_DTYPE


def fold_projection(
    weight: torch.Tensor, bias: torch.Tensor | None, *, delta: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`W <- T' W` and `b <- T' b` for T = I + `delta`, so that `x W' + b` becomes `(x W' + b) T`.

    `weight` is (d, d_ff) as `torch.nn.Linear` keeps it, `bias` (d,), `delta` (d, d) in float64. Computed in float64
    and cast once to the dtype of the weight. Raises `NumericalFailure` when that dtype cannot hold the result.
    """
    change = delta.T.to(weight.device)
    folded = (weight.to(SOLVE_DTYPE) + change @ weight.to(SOLVE_DTYPE)).to(weight.dtype)
    shifted = None if bias is None else (bias.to(SOLVE_DTYPE) + change @ bias.to(SOLVE_DTYPE)).to(bias.dtype)
    if not torch.isfinite(folded).all() or (shifted is not None and not torch.isfinite(shifted).all()):
        raise NumericalFailure(f"the folded projection does not fit into {weight.dtype}; try a larger ridge")
    return folded, shifted
