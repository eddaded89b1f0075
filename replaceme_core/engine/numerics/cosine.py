"""The map of least cosine loss between the stream and its target, minimised by Adam. Knows tensors only.

Exact loss: mean of 1 - cos(M T + Y, L_end). Light form: mean of 1 - cos(M T, L_end - Y) (ReplaceMe, arXiv 2505.02819,
section 3). All tokens have the same weight: a cosine does not depend on lengths, so a sink token cannot dominate the
sum as it dominates a Gram matrix; without it, nothing would make the map preserve the massive write of the sink.
"""

import math

import torch
from torch.utils.data import TensorDataset

BATCH_TOKENS = 1024


def cosine_tokens(write: torch.Tensor, kept: torch.Tensor, end: torch.Tensor, *, light: bool) -> TensorDataset:
    """What `CosineFit` works on: M, what is added to M T, and the direction of the target; (tokens, d), in float32.

    From the write M of the anchor block's MLP, the stream after that block, and the stream to be reached. In the light
    form Y is subtracted from the target instead of being added to the output.
    """
    write, end = write.float(), end.float()
    fixed = kept.float() - write
    if light:
        return TensorDataset(write, torch.zeros_like(fixed), _unit(end - fixed))
    return TensorDataset(write, fixed, _unit(end))


class CosineFit:
    """A descent from the map I + `delta`, (d, d) of any precision, among all maps or among diagonal ones."""

    @torch.inference_mode(mode=False)  # in which methods run, and no tensor has a gradient
    def __init__(self, delta: torch.Tensor, *, diagonal: bool) -> None:
        self.delta = (delta.diagonal() if diagonal else delta).float().clone().requires_grad_()
        self._adam = torch.optim.Adam([self.delta])

    def _products(self, tokens: TensorDataset, rows: torch.Tensor) -> torch.Tensor:
        """(rows, d), whose sums are the cosines of the tokens at the indices `rows`."""
        write, fixed, target = tokens[rows]
        moved = write * self.delta if self.delta.ndim == 1 else write @ self.delta
        products: torch.Tensor = _unit(moved.add_(write).add_(fixed)) * target
        return products

    @torch.no_grad()
    def loss(self, tokens: TensorDataset) -> float:
        """Mean of 1 - cos over `tokens`, in [0, 2]."""
        parts = torch.arange(len(tokens)).split(BATCH_TOKENS)
        return 1 - sum(float(self._products(tokens, rows).sum(dtype=torch.float64)) for rows in parts) / len(tokens)

    @torch.inference_mode(mode=False)
    def epoch(self, tokens: TensorDataset, *, rate: float, order: torch.Generator) -> None:
        """One step of Adam, at the learning rate `rate`, for each batch of the shuffled `tokens`."""
        self._adam.param_groups[0]["lr"] = rate
        for rows in torch.randperm(len(tokens), generator=order).split(BATCH_TOKENS):
            self._adam.zero_grad()
            (1 - self._products(tokens, rows).sum(dim=1).mean()).backward()
            self._adam.step()

    @torch.inference_mode(mode=False)
    def as_matrix(self) -> torch.Tensor:
        """A copy of `delta` as (d, d) in float64."""
        return (self.delta.diag() if self.delta.ndim == 1 else self.delta).detach().double()


def _unit(values: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(values, dim=1, eps=torch.finfo(values.dtype).tiny)


def annealed(rate: float, *, done: float) -> float:
    """The learning rate after the part `done`, in [0, 1], of all steps: falls to a tenth along a cosine."""
    return rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)))
