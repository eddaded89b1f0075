"""Sums over tokens from which every least-squares map follows. Knows tensors only.

With M (tokens, d) the write of the anchor block's MLP and E (tokens, d) the error of plain removal, the map
I + D that minimises |M D - E|^2 needs only M'M, M'E and |E|^2 (ReplaceMe, arXiv 2505.02819, section 3.2,
written around the identity: `M T + Y - L_end = M D - (L_end - L_keep)`).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
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
        return type(self)(
            gram=self.gram + other.gram,
            cross=self.cross + other.cross,
            error=self.error + other.error,
            target=self.target + other.target,
            tokens=self.tokens + other.tokens,
        )

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


@dataclass(kw_only=True)
class WriteSums:
    """M'M (d, d) over `tokens` tokens, for M the write of one block's MLP; sinks after the block are scaled down."""

    gram: torch.Tensor
    tokens: int = 0

    @classmethod
    def zeros(cls, width: int, *, device: torch.device) -> Self:
        return cls(gram=torch.zeros(width, width, dtype=SOLVE_DTYPE, device=device))

    def add(self, write: torch.Tensor, *, weights: torch.Tensor) -> None:
        """Add a batch: `write` M (tokens, d), `weights` (tokens,) of the stream after the block."""
        scaled = scaled_rows(write.to(PRODUCT_DTYPE, copy=True), weights)
        with products_of(write.dtype):
            self.gram += gram_of(scaled)
        self.tokens += write.shape[0]

    def include(self, other: Self) -> None:
        """Add the sums over other tokens.

        Only the order of additions differs from one pass over all b batches: by at most 2 (b - 1) 2^-53 times the sum
        of the absolute values, in each element.
        """
        self.gram += other.gram
        self.tokens += other.tokens


@dataclass(kw_only=True)
class EndSums:
    """What the end of a cut adds: `cross` M'E (d, d), `error` |E|^2, `target` |L_end|^2, and a correction of M'M."""

    cross: torch.Tensor
    error: float = 0.0
    target: float = 0.0
    corrections: list[torch.Tensor] = field(default_factory=list)

    @classmethod
    def zeros(cls, width: int, *, device: torch.device) -> Self:
        return cls(cross=torch.zeros(width, width, dtype=SOLVE_DTYPE, device=device))

    def add(self, write: torch.Tensor, *, kept: Stream, end: Stream, weights: torch.Tensor, own: torch.Tensor) -> None:
        """Add a batch: `write` M (tokens, d), `kept` L_keep, `end` L_end.

        `weights` (tokens,) are those of both ends, `own` (tokens,) those that `WriteSums.add` got for the same tokens.
        """
        missing = end.values.to(PRODUCT_DTYPE) - kept.values.to(PRODUCT_DTYPE)
        self.error += sum_of_squares(torch.linalg.vector_norm(missing, dim=1) * weights)
        with products_of(write.dtype):
            self.cross += write.to(PRODUCT_DTYPE).T @ scaled_rows(missing, weights.square())
        self.target += sum_of_squares(end.length * weights)
        lighter = weights < own
        if bool(lighter.any()):
            rows = write[lighter].to(SOLVE_DTYPE)  # (a few, d)
            change = weights[lighter].to(SOLVE_DTYPE).square() - own[lighter].to(SOLVE_DTYPE).square()
            self._correct(rows.T @ (rows * change.unsqueeze(1)))

    def include(self, other: Self) -> None:
        """As `WriteSums.include`."""
        self.cross += other.cross
        self.error += other.error
        self.target += other.target
        for correction in other.corrections:
            self._correct(correction)

    def _correct(self, correction: torch.Tensor) -> None:
        if self.corrections:
            self.corrections[0] += correction
        else:
            self.corrections.append(correction)

    def moments(self, anchor: WriteSums) -> Moments:
        """All sums that a fit needs, with those of the `anchor` block over the same tokens."""
        gram = anchor.gram + self.corrections[0] if self.corrections else anchor.gram
        return Moments(gram=gram, cross=self.cross, error=self.error, target=self.target, tokens=anchor.tokens)


def scaled_rows(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """`values` (tokens, d) times `weights` (tokens,), in place. Rows with weight 1, nearly all, are not touched."""
    others = (weights != 1).nonzero().squeeze(1)
    values[others] *= weights[others].unsqueeze(1)
    return values
