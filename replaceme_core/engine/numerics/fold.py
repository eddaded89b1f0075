"""Fold a linear map into the projection before it. Knows tensors only."""

import torch

from replaceme_core.engine.numerics.moments import SOLVE_DTYPE
from replaceme_core.errors import NumericalFailure


def fold_projection(
    weight: torch.Tensor, bias: torch.Tensor | None, *, delta: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`W <- T' W` and `b <- T' b` for T = I + `delta`, so that `x W' + b` becomes `(x W' + b) T`.

    `weight` is (d, f) as `torch.nn.Linear` keeps it, `bias` (d,), `delta` (d, d) in float64. Computed in float64
    and cast once to the dtype of the weight. Raises `NumericalFailure` if the result overflows that dtype.
    """
    change = delta.T.to(weight.device)
    folded = (weight.to(SOLVE_DTYPE) + change @ weight.to(SOLVE_DTYPE)).to(weight.dtype)
    shifted = None if bias is None else (bias.to(SOLVE_DTYPE) + change @ bias.to(SOLVE_DTYPE)).to(bias.dtype)
    _check_fits(folded, shifted)
    return folded, shifted


def fold_norm(weight: torch.Tensor, *, delta: torch.Tensor, offset: float) -> torch.Tensor:
    """The weight w of a norm `(offset + w) * x` whose output is the old one multiplied by T = I + `delta`.

    `weight` is (d,), `delta` (d, d) in float64 and diagonal: no other map can be folded here. Precision and errors as
    `fold_projection`.
    """
    diagonal = delta.diagonal().to(weight.device)
    assert torch.equal(delta.diagonal().diag(), delta), "a norm can absorb a diagonal map only"
    folded = (weight.to(SOLVE_DTYPE) + diagonal * (offset + weight.to(SOLVE_DTYPE))).to(weight.dtype)
    _check_fits(folded)
    return folded


def _check_fits(*folded: torch.Tensor | None) -> None:
    for one in folded:
        if one is not None and not torch.isfinite(one).all():
            raise NumericalFailure(f"the folded weights overflow {one.dtype}; try a larger ridge")
