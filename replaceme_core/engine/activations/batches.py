"""Calibration tokens in batches, in the order of a pass: fit tokens, then held-out tokens."""

from dataclasses import dataclass

import torch

HELD_OUT_BATCHES = 16
"""Least number of held-out batches, if there are as many sequences: a replay may stop after some of them."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """`tokens` (sequences, positions) on the host; those of a held-out batch come from one `source`.

    Every second held-out batch of a source belongs to the `second_half`.
    """

    tokens: torch.Tensor
    held_out: bool = False
    second_half: bool = False
    source: int = 0


def schedule(
    fit: torch.Tensor, held_out: torch.Tensor, batch_size: int, *, sources: torch.Tensor | None = None
) -> list[Batch]:
    """The batches of a pass: those of the fit tokens, then the held-out ones.

    `sources` (held-out sequences,) tells where each of these comes from; `None`: all from one source. The batches of
    sources alternate in proportion, so that the first of them have a part of each.
    """
    return [Batch(tokens=tokens) for tokens in fit.split(batch_size)] + held_out_batches(held_out, batch_size, sources)


def held_out_batches(held_out: torch.Tensor, batch_size: int, sources: torch.Tensor | None) -> list[Batch]:
    """The held-out part of `schedule`."""
    small = min(batch_size, max(1, len(held_out) // HELD_OUT_BATCHES))
    if sources is None:
        sources = torch.zeros(len(held_out), dtype=torch.long)
    placed: list[tuple[float, Batch]] = []
    for source in sources.unique().tolist():
        parts = held_out[sources == source].split(small)
        placed += [
            (
                (number + 0.5) / len(parts),
                Batch(tokens=tokens, held_out=True, second_half=number % 2 == 1, source=source),
            )
            for number, tokens in enumerate(parts)
        ]
    return [batch for _, batch in sorted(placed, key=lambda one: one[0])]
