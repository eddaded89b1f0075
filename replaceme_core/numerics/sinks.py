"""Tokens with massive activations. Knows tensors only.

A few tokens (often, not always, position 0) carry a residual stream a hundred times longer than all others. They serve
attention as a sink, and would dominate an unweighted Gram matrix.
"""

import torch

SINK_FACTOR = 10.0
"""Times the median length. Ordinary tokens stay within 3, sinks are at 100 and more (SmolLM2: 160)."""


def ordinary(stream: torch.Tensor) -> torch.Tensor:
    """Mask (tokens,) of the rows of `stream` (tokens, d) that are not sinks."""
    length: torch.Tensor = torch.linalg.vector_norm(stream.to(torch.float32), dim=1)
    return length <= SINK_FACTOR * length.median()
