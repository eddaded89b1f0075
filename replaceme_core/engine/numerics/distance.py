"""Distance between the streams at the two ends of a cut. Knows tensors only."""

from dataclasses import dataclass
from typing import Self

import torch

from replaceme_core.engine.numerics.stream import Stream


@dataclass(kw_only=True)
class MeanAngle:
    """Mean angular distance arccos(cos(x, y)) / pi over tokens, in [0, 1] (UIDL, arXiv 2403.17887, equation 7).

    Over all tokens that are no sinks rather than the last one of each sequence: far more data from the same pass.
    """

    total: float = 0.0
    tokens: int = 0
    cosines: float = 0.0

    def add(self, kept: Stream, end: Stream, *, mask: torch.Tensor) -> None:
        """Add a batch; `mask` (tokens,) picks the rows."""
        cosine = kept.cosine(end).clamp(-1, 1)
        self.total += float((cosine.arccos() / torch.pi * mask).sum(dtype=torch.float64))
        self.cosines += float((cosine * mask).sum(dtype=torch.float64))
        self.tokens += int(mask.sum())

    def include(self, other: Self) -> None:
        """Add the sums over other tokens."""
        self.total += other.total
        self.cosines += other.cosines
        self.tokens += other.tokens

    @property
    def value(self) -> float:
        """The mean angular distance in [0, 1]."""
        return self.total / max(self.tokens, 1)

    @property
    def influence(self) -> float:
        """1 - mean cos(x, y) in [0, 2]: the block influence of ShortGPT (arXiv 2403.03853, equation 1)."""
        return 1 - self.cosines / max(self.tokens, 1)


TOKENS_AT_ONCE = 16


def mean_angles(directions: torch.Tensor) -> torch.Tensor:
    """The mean angular distance of every two of several streams, (streams, streams) in [0, 1], in float64.

    `directions` (streams, tokens, d) are the streams of the same tokens, each of length 1.
    """
    streams, tokens, _ = directions.shape
    total = torch.zeros(streams, streams, dtype=torch.float64, device=directions.device)
    for some in directions.transpose(0, 1).split(TOKENS_AT_ONCE):
        exact = some.to(torch.float64)
        total += (exact @ exact.transpose(1, 2)).clamp(-1, 1).arccos().sum(dim=0)
    return total / (tokens * torch.pi)
