"""The sums of a cut in two parts: those of its anchor block, and those that its end adds. Knows tensors only.

M'M depends on the anchor block, M'E on both ends of a cut. Kept apart, M'M serves every cut after the anchor block,
whatever its length (docs/explanation/method.md, "One pass"). Only sinks connect them: a token is scaled down when it
is a sink at either end, so M'M is corrected for the few tokens that are sinks at the end alone.
"""

from dataclasses import dataclass, field
from typing import Self

import torch

from replaceme_core.engine.numerics.moments import PRODUCT_DTYPE, SOLVE_DTYPE, Moments, gram_of, sum_of_squares
from replaceme_core.engine.numerics.stream import Stream


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
        self.gram += gram_of(scaled)
        self.tokens += write.shape[0]

    def zero_width(self) -> Self:
        """Sums of width 0 on the same device, which take no memory."""
        return self.zeros(0, device=self.gram.device)

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
        self.cross += write.to(PRODUCT_DTYPE).T @ scaled_rows(missing, weights.square())
        self.target += sum_of_squares(end.length * weights)
        lighter = weights < own
        if bool(lighter.any()):
            rows = write[lighter].to(SOLVE_DTYPE)  # (a few, d)
            change = weights[lighter].to(SOLVE_DTYPE).square() - own[lighter].to(SOLVE_DTYPE).square()
            self._correct(rows.T @ (rows * change.unsqueeze(1)))

    def zero_width(self) -> Self:
        """As `WriteSums.zero_width`."""
        return self.zeros(0, device=self.cross.device)

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
