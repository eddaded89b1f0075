"""Sums over tokens from which every least-squares map follows. Knows tensors only.

With M (tokens, d) the write of the anchor block's MLP and E (tokens, d) the error of plain removal, the map
I + D that minimises |M D - E|^2 needs only M'M, M'E and |E|^2 (ReplaceMe, arXiv 2505.02819, section 3.2,
written around the identity: `M T + Y - L_end = M D - (L_end - L_keep)`).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import torch

from replaceme_core.engine.numerics.stream import Stream

SOLVE_DTYPE = torch.float64
PRODUCT_DTYPE = torch.float32
"""The dtype of the products of one batch, which are then added up in SOLVE_DTYPE."""
PANELS = 4
"""More save little and make the products narrow."""


@dataclass(kw_only=True)
class Moments:
    """Accumulated over tokens: `gram` M'M (f, f), `cross` M'E (f, d), `error` |E|^2, `target` |L_end|^2, `tokens`.

    M (tokens, f) is what the unknown matrix multiplies: the write of the anchor block's MLP, where f = d, or the input
    of a projection.
    """

    gram: torch.Tensor
    cross: torch.Tensor
    error: float
    target: float
    tokens: int

    @classmethod
    def zeros(cls, width: int, *, inputs: int | None = None, device: torch.device) -> Self:
        """Sums over no tokens; d is `width`, f is `inputs`, or d if that is not given."""
        inputs = width if inputs is None else inputs
        gram = torch.zeros(inputs, inputs, dtype=SOLVE_DTYPE, device=device)
        cross = torch.zeros(inputs, width, dtype=SOLVE_DTYPE, device=device)
        return cls(gram=gram, cross=cross, error=0.0, target=0.0, tokens=0)

    def add(self, write: torch.Tensor, *, kept: Stream, end: Stream, weights: torch.Tensor) -> None:
        """Add a batch: `write` M (tokens, f), `kept` L_keep and `end` L_end, scaled by `weights` (tokens,)."""
        scale = weights.unsqueeze(1)  # (tokens, 1)
        missing = (end.values.to(PRODUCT_DTYPE) - kept.values.to(PRODUCT_DTYPE)).mul_(scale)
        given, write = write.dtype, write.to(PRODUCT_DTYPE) * scale
        with products_of(given):
            self.gram += gram_of(write)
            self.cross += write.T @ missing
        self.error += sum_of_squares(torch.linalg.vector_norm(missing, dim=1))
        self.target += sum_of_squares(end.length * weights)
        self.tokens += write.shape[0]

    def __add__(self, other: Self) -> Self:
        return type(self)(**{name: value + getattr(other, name) for name, value in vars(self).items()})

    def residual(self, delta: torch.Tensor) -> float:
        """The relative residual |M D - E|^2 / |L_end|^2 at the end of the cut for D = `delta` (f, d), from the sums."""
        fitted = float((delta * (self.gram @ delta - 2 * self.cross)).sum()) if bool(delta.any()) else 0.0
        return max(fitted + self.error, 0.0) / max(self.target, torch.finfo(SOLVE_DTYPE).tiny)


@contextmanager
def products_of(given: torch.dtype) -> Iterator[None]:
    """Products in PRODUCT_DTYPE of values that came as `given`: bfloat16 ones are multiplied as such on a CPU.

    That takes half the time, and the sums are exact to float32: only rows with a weight other than 1 are rounded a
    second time, which adds less noise than the first rounding did.
    """
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # a property of the module
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16" if given is torch.bfloat16 else before
    try:
        yield
    finally:
        matmul.fp32_precision = before


def gram_of(values: torch.Tensor) -> torch.Tensor:
    """V'V (f, f) of `values` V (tokens, f), exactly symmetric.

    In panels of columns, each with those to its right only: with four, 5/8 of the products of the whole, and about
    0.7 of its time (docs/research/memory-and-speed.md).
    """
    width = values.shape[1]
    panel = math.ceil(width / PANELS)
    product = values.new_empty(width, width)
    for first in range(0, width, max(1, panel)):
        last = first + panel
        rows = values[:, first:last].T @ values[:, first:]
        product[first:last, first:] = rows
        product[last:, first:last] = rows[:, panel:].T
    return product


def sum_of_squares(values: torch.Tensor) -> float:
    """The sum of the squares of `values`, computed in SOLVE_DTYPE."""
    return float(values.to(SOLVE_DTYPE).square().sum())
