"""The calibration tokens in the order in which a pass runs them."""

from dataclasses import dataclass

import torch

HELD_OUT_BATCHES = 8
"""Held-out sequences come in at least so many batches, so that a replay may begin with a part of them."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """`tokens` (sequences, positions) on the host. Held-out batches go by turns to two halves, and so does the text."""

    tokens: torch.Tensor
    held_out: bool = False
    second_half: bool = False


def schedule(fit: torch.Tensor, held_out: torch.Tensor, batch_size: int) -> list[Batch]:
    """The batches of a pass: those of the fit tokens, then the held-out ones."""
    small = min(batch_size, max(1, len(held_out) // HELD_OUT_BATCHES))
    judges = [
        Batch(tokens=tokens, held_out=True, second_half=number % 2 == 1)
        for number, tokens in enumerate(held_out.split(small))
    ]
    return [Batch(tokens=tokens) for tokens in fit.split(batch_size)] + judges
