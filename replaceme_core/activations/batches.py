"""Calibration tokens in batches, in the order of a pass: fit tokens, then held-out tokens."""

from dataclasses import dataclass

import torch

HELD_OUT_BATCHES = 8
"""Least number of held-out batches, if there are as many sequences: a replay may stop after some of them."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """`tokens` (sequences, positions) on the host. Every second held-out batch belongs to the `second_half`."""

    tokens: torch.Tensor
    held_out: bool = False
    second_half: bool = False


def schedule(fit: torch.Tensor, held_out: torch.Tensor, batch_size: int) -> list[Batch]:
    """The batches of a pass: those of the fit tokens, then the held-out ones."""
    small = min(batch_size, max(1, len(held_out) // HELD_OUT_BATCHES))
    held_out_batches = [
        Batch(tokens=tokens, held_out=True, second_half=number % 2 == 1)
        for number, tokens in enumerate(held_out.split(small))
    ]
    return [Batch(tokens=tokens) for tokens in fit.split(batch_size)] + held_out_batches
