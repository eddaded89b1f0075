"""Tokens with massive activations. Knows tensors only.

A few tokens (often, not always, position 0) carry a residual stream a hundred times longer than all others; attention
uses them as a sink. Unweighted, they dominate a Gram matrix. Left out, nothing tells the map to pass their massive
write on, and the pruned model falls apart. So they are kept, scaled down to the longest that an ordinary token could
be (measured: docs/decisions/0002-sink-tokens.md).
"""

import torch

LONGEST_ORDINARY = 10.0
"""Times the median length. Ordinary tokens stay within 3; sinks are at 100 and more (SmolLM2: 160)."""


def token_weights(*streams: torch.Tensor) -> torch.Tensor:
    """Weights (tokens,) in (0, 1] for rows of `streams`, each (tokens, d): 1 for ordinary tokens, less for sinks."""
    weights = torch.ones(streams[0].shape[0], dtype=torch.float32, device=streams[0].device)
    for stream in streams:
        length = torch.linalg.vector_norm(stream.to(torch.float32), dim=1)
        weights = torch.minimum(weights, LONGEST_ORDINARY * length.median() / length.clamp_min(1e-30))
    return weights
