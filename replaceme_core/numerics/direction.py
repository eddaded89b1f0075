"""What a projection should give when a norm takes the length of it away. Knows tensors only."""

import torch

LEAST_WEIGHT = 1e-3
"""Of the mean weight of a norm: a channel of less is as good as cut off, and says nothing of what comes in."""


def target_before_norm(wanted: torch.Tensor, *, given: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """What has the length of `given` and comes out of the norm in the direction of `wanted`; all (tokens, d).

    An RMS norm of `weight` (d,) makes `sqrt(d) u / |u| * weight` of u, so that u must point along `wanted / weight`
    (method.md, section 3). Where a channel's weight is next to nothing, it stays what it is.
    """
    tiny = torch.finfo(given.dtype).tiny
    passed = weight.abs() > LEAST_WEIGHT * weight.abs().mean()
    length = torch.linalg.vector_norm(given, dim=1, keepdim=True)  # (tokens, 1)
    own = given * (given.shape[1] ** 0.5 / length.clamp_min(tiny))
    direction: torch.Tensor = torch.where(passed, wanted / torch.where(passed, weight, 1.0), own)
    direction *= length / torch.linalg.vector_norm(direction, dim=1, keepdim=True).clamp_min(tiny)
    return direction
