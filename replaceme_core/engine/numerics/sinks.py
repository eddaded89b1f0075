"""Sink tokens: tokens with massive activations. Knows tensors only.

A few tokens (often, not always, position 0) have a residual stream a hundred times longer than all others; attention
uses them as a sink. Unweighted, they dominate a Gram matrix. Without them, nothing makes the map preserve their massive
write, and the pruned model breaks down. So they stay in the sums, scaled down to the greatest length of an ordinary
token (measured: docs/explanation/how-the-default-works.md#sinks).
"""

import torch

from replaceme_core.engine.numerics.stream import Stream

LONGEST_ORDINARY = 10.0
"""Times the median length. Ordinary tokens stay below 3; sinks are at 100 and more (SmolLM2: 24,800 against 140)."""


def token_weights(*streams: Stream) -> torch.Tensor:
    """Weights (tokens,) in (0, 1]: 1 for tokens that are ordinary in all `streams`, less for sink tokens."""
    weights = torch.ones_like(streams[0].length)
    for stream in streams:
        longest = LONGEST_ORDINARY * stream.length.median()
        weights = torch.minimum(weights, longest / stream.length.clamp_min(torch.finfo(torch.float32).tiny))
    return weights


LARGEST_WEIGHT = 3.0


def inverse_length_weights(stream: Stream) -> torch.Tensor:
    """Weights (tokens,): the median length of `stream` divided by the length of each token's stream, more for sinks.

    They make errors relative to the length. Later blocks read the stream through a norm, which removes the length, so
    the same error is worse in a short stream than in a long one. No weight exceeds `LARGEST_WEIGHT`. A sink is scaled
    to `LONGEST_ORDINARY` times the median instead, and so counts as a hundred tokens: most later tokens attend to it
    (measured: docs/research/sink-tokens.md).
    """
    length = stream.length.clamp_min(torch.finfo(torch.float32).tiny)
    relative = length.median() / length
    is_sink = relative < 1 / LONGEST_ORDINARY
    return torch.where(is_sink, LONGEST_ORDINARY * relative, relative).clamp(max=LARGEST_WEIGHT)
