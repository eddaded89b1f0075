"""The residual stream at one point of the model. Knows tensors only."""

from dataclasses import dataclass
from functools import cached_property

import torch


@dataclass(frozen=True)
class Stream:
    """`values` (tokens, d). It may be the start of one cut and the end of another; its lengths are computed once."""

    values: torch.Tensor

    @cached_property
    def length(self) -> torch.Tensor:
        """Euclidean length of each token's stream (tokens,) in float32."""
        length: torch.Tensor = torch.linalg.vector_norm(self.values, dim=1, dtype=torch.float32)
        return length

    def cosine(self, other: "Stream") -> torch.Tensor:
        """Cosine to `other`, token by token (tokens,)."""
        product = (self.values * other.values).sum(dim=1, dtype=torch.float32)
        return product / (self.length * other.length).clamp_min(torch.finfo(torch.float32).tiny)
