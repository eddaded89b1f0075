"""The map of least cosine loss between the stream and its target, minimised by Adam. Knows tensors only.

Exact loss: mean of 1 - cos(M T + Y, L_end). Light form: mean of 1 - cos(M T, L_end - Y) (ReplaceMe, arXiv 2505.02819,
section 3). All tokens have the same weight: a cosine does not depend on lengths, so a sink token cannot dominate the
sum as it dominates a Gram matrix; without it, nothing would make the map preserve the massive write of the sink.
"""

import math
from dataclasses import dataclass, field

import torch

BATCH_TOKENS = 1024


@dataclass(frozen=True, kw_only=True)
class CosineTokens:
    """`write` M, `fixed` (Y, or zero in the light form) and `target`, (tokens, d) each, in float32.

    Build with `exact` or `light`.
    """

    write: torch.Tensor
    fixed: torch.Tensor | None
    target: torch.Tensor

    @classmethod
    def exact(cls, *, write: torch.Tensor, kept: torch.Tensor, end: torch.Tensor) -> "CosineTokens":
        """From the write of the anchor block's MLP, the stream after that block, and the stream to be reached."""
        write, end = write.float(), end.float()
        return cls(write=write, fixed=kept.float() - write, target=_unit(end))

    @classmethod
    def light(cls, *, write: torch.Tensor, kept: torch.Tensor, end: torch.Tensor) -> "CosineTokens":
        """The same for the light form: Y is subtracted from the target instead of being added to the output."""
        write = write.float()
        return cls(write=write, fixed=None, target=_unit(end.float() - (kept.float() - write)))

    def __len__(self) -> int:
        return self.write.shape[0]

    def select(self, rows: torch.Tensor) -> "CosineTokens":
        """The tokens at the indices `rows`."""
        fixed = None if self.fixed is None else self.fixed[rows]
        return CosineTokens(write=self.write[rows], fixed=fixed, target=self.target[rows])


@dataclass(kw_only=True)
class CosineFit:
    """The state of a descent: the map I + `delta`, (d, d), or (d,) where it is diagonal; float32. `rate` is Adam's."""

    delta: torch.Tensor
    rate: float
    _adam: torch.optim.Adam = field(init=False)

    def __post_init__(self) -> None:
        self._adam = torch.optim.Adam([self.delta.requires_grad_()])

    @classmethod
    @torch.inference_mode(mode=False)  # in which methods run, and no tensor has a gradient
    def start(cls, delta: torch.Tensor, *, diagonal: bool, rate: float) -> "CosineFit":
        """Start at the map I + `delta` (d, d), of any precision."""
        own = delta.diagonal() if diagonal else delta
        return cls(delta=own.float().clone(), rate=rate)

    def output(self, tokens: CosineTokens) -> torch.Tensor:
        """M T + Y (tokens, d)."""
        diagonal = self.delta.ndim == 1
        moved: torch.Tensor = tokens.write * self.delta if diagonal else tokens.write @ self.delta
        moved.add_(tokens.write)
        if tokens.fixed is not None:
            moved.add_(tokens.fixed)
        return moved

    @torch.no_grad()
    def loss(self, tokens: CosineTokens) -> float:
        """Mean of 1 - cos over `tokens`, in [0, 2]."""
        parts = (tokens.select(rows) for rows in torch.arange(len(tokens)).split(BATCH_TOKENS))
        total = sum(float((_unit(self.output(part)) * part.target).sum(dtype=torch.float64)) for part in parts)
        return 1 - total / len(tokens)

    @torch.inference_mode(mode=False)
    def epoch(self, tokens: CosineTokens, *, order: torch.Generator) -> None:
        """One step of Adam for each batch of the shuffled `tokens`."""
        shuffled = torch.randperm(len(tokens), generator=order)
        self._adam.param_groups[0]["lr"] = self.rate
        for rows in shuffled.split(BATCH_TOKENS):
            part = tokens.select(rows.to(tokens.write.device))
            self._adam.zero_grad()
            (1 - (_unit(self.output(part)) * part.target).sum(dim=1).mean()).backward()
            self._adam.step()

    @torch.inference_mode(mode=False)
    def as_matrix(self) -> torch.Tensor:
        """A copy of `delta` as (d, d) in float64."""
        return (self.delta.diag() if self.delta.ndim == 1 else self.delta).detach().double()


def _unit(values: torch.Tensor) -> torch.Tensor:
    length: torch.Tensor = torch.linalg.vector_norm(values, dim=1, keepdim=True)
    return values / length.clamp_min(torch.finfo(values.dtype).tiny)


def annealed(rate: float, *, done: float) -> float:
    """The learning rate after the part `done`, in [0, 1], of all steps: falls to a tenth along a cosine."""
    return rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)))
