"""The map of least cosine loss between the stream and its target, minimised by Adam. Knows tensors only.

Exact loss: mean of 1 - cos(M T + Y, L_end). Light form: mean of 1 - cos(M T, L_end - Y) (ReplaceMe, arXiv 2505.02819,
section 3). All tokens have the same weight: a cosine does not depend on lengths, so a sink token cannot dominate the
sum as it dominates a Gram matrix; without it, nothing would make the map preserve the massive write of the sink.
"""

import math
from dataclasses import dataclass, field

import torch

BATCH_TOKENS = 1024
BETAS = (0.9, 0.999)
EPSILON = 1e-8


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
    _mean: torch.Tensor = field(init=False)
    _square: torch.Tensor = field(init=False)
    _steps: int = 0

    def __post_init__(self) -> None:
        self._mean, self._square = torch.zeros_like(self.delta), torch.zeros_like(self.delta)

    @classmethod
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

    def loss(self, tokens: CosineTokens) -> float:
        """Mean of 1 - cos over `tokens`, in [0, 2]."""
        parts = (tokens.select(rows) for rows in torch.arange(len(tokens)).split(BATCH_TOKENS))
        total = sum(float((_unit(self.output(part)) * part.target).sum(dtype=torch.float64)) for part in parts)
        return 1 - total / len(tokens)

    def epoch(self, tokens: CosineTokens, *, order: torch.Generator) -> None:
        """One step of Adam for each batch of the shuffled `tokens`."""
        shuffled = torch.randperm(len(tokens), generator=order)
        for rows in shuffled.split(BATCH_TOKENS):
            self._step(tokens.select(rows.to(tokens.write.device)))

    def _step(self, tokens: CosineTokens) -> None:
        output = self.output(tokens)
        length = torch.linalg.vector_norm(output, dim=1, keepdim=True).clamp_min(torch.finfo(output.dtype).tiny)
        unit = output / length
        cosine = (unit * tokens.target).sum(dim=1, keepdim=True)
        # d(1 - cos) / d output = (cos * unit - target) / length, averaged over the tokens
        slope = (cosine * unit - tokens.target) / (length * len(tokens))
        gradient = tokens.write.T @ slope if self.delta.ndim == 2 else (tokens.write * slope).sum(dim=0)
        self._steps += 1
        first, second = (1 - beta**self._steps for beta in BETAS)
        self._mean.lerp_(gradient, 1 - BETAS[0])
        self._square.lerp_(gradient.square(), 1 - BETAS[1])
        self.delta.addcdiv_(self._mean, (self._square / second).sqrt_().add_(EPSILON), value=-self.rate / first)

    def as_matrix(self) -> torch.Tensor:
        """A copy of `delta` as (d, d) in float64."""
        return (self.delta.diag() if self.delta.ndim == 1 else self.delta.clone()).double()


def _unit(values: torch.Tensor) -> torch.Tensor:
    length: torch.Tensor = torch.linalg.vector_norm(values, dim=1, keepdim=True)
    return values / length.clamp_min(torch.finfo(values.dtype).tiny)


def annealed(rate: float, *, done: float) -> float:
    """The learning rate after the part `done`, in [0, 1], of all steps: falls to a tenth along a cosine."""
    return rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)))
