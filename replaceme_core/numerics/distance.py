"""Distance between the streams at the two ends of a cut. Knows tensors only."""

from dataclasses import dataclass

import torch


@dataclass(kw_only=True)
class MeanAngle:
    """Mean angular distance arccos(cos(x, y)) / pi over tokens, in [0, 1] (UIDL, arXiv 2403.17887, equation 7).

    Over all ordinary tokens rather than each sequence's last one: a thousand times the evidence for the same pass.
    """

    total: float = 0.0
    tokens: int = 0

    def add(self, kept: torch.Tensor, end: torch.Tensor, *, mask: torch.Tensor) -> None:
        """Add a batch: both streams (tokens, d); `mask` (tokens,) picks the rows."""
        cosine = torch.nn.functional.cosine_similarity(kept.to(torch.float32), end.to(torch.float32), dim=1)
        angle = cosine.clamp(-1, 1).arccos() / torch.pi
        self.total += float((angle * mask).sum(dtype=torch.float64))
        self.tokens += int(mask.sum())

    @property
    def value(self) -> float:
        return self.total / max(self.tokens, 1)
