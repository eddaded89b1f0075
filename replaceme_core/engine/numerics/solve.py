"""The map in place of removed blocks: solved by ridge regression toward the identity, and folded into a weight."""

import math
from collections.abc import Sequence

import torch

from replaceme_core.engine.numerics.sums import SOLVE_DTYPE, Moments
from replaceme_core.errors import NumericalFailure


def solve_delta(moments: Moments, *, ridge: float, diagonal: bool = False) -> torch.Tensor:
    """D (d, d) in float64 that minimises |M D - E|^2 + a |D|^2, with a = `ridge` x the mean diagonal of M'M.

    The map is I + D; an infinite ridge is plain removal, D = 0, and so is what is solved from zeros alone. Relative to
    the mean diagonal, the strength does not depend on the number of tokens. With `diagonal` it is the minimum among
    diagonal D: one regression for each channel. Raises `NumericalFailure` when the sums are not finite or M'M + aI has
    no Cholesky factor, which with a ridge of zero means fewer independent tokens than unknowns.
    """
    gram, cross = moments.gram, moments.cross
    if not (torch.isfinite(gram).all() and torch.isfinite(cross).all()):
        raise NumericalFailure("the calibration statistics are not finite: the model produced NaN or infinity")
    if math.isinf(ridge) or not gram.any():
        return torch.zeros_like(cross)
    strength = ridge * float(gram.diagonal().mean())
    if diagonal:
        squares = gram.diagonal() + strength
        # A channel that is never written to needs no change, whatever the ridge.
        return torch.where(squares > 0, cross.diagonal() / squares, 0.0).diag()
    system = gram + strength * torch.eye(gram.shape[0], dtype=SOLVE_DTYPE, device=gram.device)
    factor, info = torch.linalg.cholesky_ex(system)
    # The squared ratio of extreme pivots is a lower bound of the condition number: beyond 1 / eps no digit is correct.
    pivots = factor.diagonal()
    if int(info) != 0 or float(pivots.min()) <= float(pivots.max()) * torch.finfo(SOLVE_DTYPE).eps ** 0.5:
        raise NumericalFailure(
            f"{moments.tokens} calibration tokens do not determine a map of width {gram.shape[0]} at ridge {ridge:g}; "
            "give more tokens or a larger ridge"
        )
    delta = torch.cholesky_solve(cross, factor)
    if not torch.isfinite(delta).all():
        raise NumericalFailure(f"the least-squares map is not finite at ridge {ridge:g}; try a larger ridge")
    return delta


def choose_ridge(
    fit: Moments,
    held_out: Moments,
    *,
    ridges: Sequence[float],
    diagonal: bool = False,
) -> tuple[float, float]:
    """The ridge whose map has the least residual on held-out tokens, and that residual.

    Tried from the largest on until a smaller one is worse: between underfitting and overfitting there is one minimum.
    Plain removal does not end the search. Ridges at which the system is singular are skipped; raises
    `NumericalFailure` if all are.
    """
    best: tuple[float, float] | None = None
    failure: NumericalFailure | None = None
    last = math.inf
    for ridge in sorted(ridges, reverse=True):
        try:
            residual = held_out.residual(solve_delta(fit, ridge=ridge, diagonal=diagonal))
        except NumericalFailure as error:
            failure = error
            continue
        if best is None or residual < best[1]:
            best = (ridge, residual)
        if residual > last:
            break
        if not math.isinf(ridge):
            last = residual
    if best is None:
        assert failure is not None, "no ridges to choose from"
        raise failure
    return best


def folded(values: torch.Tensor, *, delta: torch.Tensor, axis: int = -1, offset: float | None = None) -> torch.Tensor:
    """The `values` of a weight or bias whose `axis`, of length d, is multiplied by T = I + `delta`.

    Of a linear weight (d, f) that is `W <- T' W`, with axis 0, so that `x W'` becomes `x W' T`. With an `offset` it is
    the weight w (d,) of a norm `(offset + w) * x`, for which `delta` (d, d) must be diagonal. Computed in float64 and
    cast once to the dtype of `values`. Raises `NumericalFailure` if the result overflows that dtype.
    """
    assert offset is None or torch.equal(delta.diagonal().diag(), delta), "a norm can absorb a diagonal map only"
    wide = torch.movedim(values.to(SOLVE_DTYPE), axis, -1)
    changed = wide + (wide + (offset or 0.0)) @ delta.to(values.device)
    result = torch.movedim(changed, -1, axis).to(values.dtype)
    if not torch.isfinite(result).all():
        raise NumericalFailure(f"the folded weights overflow {result.dtype}; try a larger ridge")
    return result
