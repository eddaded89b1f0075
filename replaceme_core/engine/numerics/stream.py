"""The residual stream at one point of the model: lengths, sink tokens, and angles to other streams."""

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
        product = (self.values.float() * other.values.float()).sum(dim=1)  # float16 ends at 65,504
        return product / (self.length * other.length).clamp_min(torch.finfo(torch.float32).tiny)


LONGEST_ORDINARY = 10.0
"""Times the median length. Ordinary tokens stay below 3; sinks are at 100 and more (SmolLM2: 24,800 against 140)."""


def token_weights(*streams: Stream) -> torch.Tensor:
    """Weights (tokens,) in (0, 1]: 1 for tokens that are ordinary in all `streams`, less for sink tokens."""
    weights = torch.ones_like(streams[0].length)
    for stream in streams:
        longest = LONGEST_ORDINARY * stream.length.median()
        weights = torch.minimum(weights, longest / stream.length.clamp_min(torch.finfo(torch.float32).tiny))
    return weights


def inverse_length_weights(stream: Stream) -> torch.Tensor:
    """Weights (tokens,): the median length of `stream` divided by that of each token's stream, at most 1.

    They make errors relative to the length. Later blocks read the stream through a norm, which removes the length, so
    the same error is worse in a short stream than in a long one. A sink is scaled to `LONGEST_ORDINARY` times the
    median instead, and so counts as a hundred tokens: most later tokens attend to it (measured:
    docs/research/sink-tokens.md).
    """
    length = stream.length.clamp_min(torch.finfo(torch.float32).tiny)
    relative = length.median() / length
    is_sink = relative < 1 / LONGEST_ORDINARY
    return torch.where(is_sink, LONGEST_ORDINARY * relative, relative.clamp(max=1.0))


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
