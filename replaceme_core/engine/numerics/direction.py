"""Targets for a projection whose output goes through a norm, which removes its length. Knows tensors only."""

import torch

LEAST_WEIGHT = 1e-3
"""Share of the mean weight of a norm: a channel with less has almost no output, which cannot show its input."""


def target_before_norm(wanted: torch.Tensor, *, given: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The input of the norm with the length of `given` whose output has the direction of `wanted`; all (tokens, d).

    The output of an RMS norm with `weight` (d,) for u is `sqrt(d) u / |u| * weight`, so u must point along
    `wanted / weight`. A channel with a weight below `LEAST_WEIGHT` keeps its direction in `given`.
    """
    tiny = torch.finfo(given.dtype).tiny
    usable = weight.abs() > LEAST_WEIGHT * weight.abs().mean()
    length = torch.linalg.vector_norm(given, dim=1, keepdim=True)  # (tokens, 1)
    own = given * (given.shape[1] ** 0.5 / length.clamp_min(tiny))
    direction: torch.Tensor = torch.where(usable, wanted / torch.where(usable, weight, 1.0), own)
    direction *= length / torch.linalg.vector_norm(direction, dim=1, keepdim=True).clamp_min(tiny)
    return direction
