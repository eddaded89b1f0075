"""Sequences that repeat a passage: what the model predicts in the second copy it owes to the first.

A model without some of its blocks may predict ordinary text well and no longer make use of what came before, which
held-out text hardly shows (docs/decisions/0051-repeated-passages.md). The passages are those of sequences at hand, so
they need no further text and are of any language.
"""

import math
from dataclasses import replace

import torch

from replaceme_core.calibration.packing import TokenSet
from replaceme_core.calibration.tokens import with_source
from replaceme_core.resolved_spec import ResolvedCalibration

NAME = "repeated passages"
"""The name of the source in reports."""
PASSAGE = 128
"""Tokens, about."""


def with_repeated(tokens: TokenSet, calibration: ResolvedCalibration, *, prefix: int) -> TokenSet:
    """`tokens` with the sequences of repeated passages that `calibration` asks for, a source of their own.

    They are made of fitted sequences, and none is held out. Each begins with the first `prefix` tokens of the sequence
    that it is made of.
    """
    count = calibration.repeating
    if count == 0:
        return tokens
    fit = repeat_passages(tokens.fit[: math.ceil(count / 2)], prefix=prefix).flatten(0, 1)[:count]
    named = replace(tokens, sources=(*tokens.sources, NAME))
    none = tokens.held_out[:0]  # they would decide which blocks go (docs/decisions/0051-repeated-passages.md)
    return with_source(named, len(tokens.sources), fit=fit, held_out=none, seed=calibration.seed)


def repeat_passages(sequences: torch.Tensor, *, prefix: int) -> torch.Tensor:
    """Token ids (sequences, 2, length) from (sequences, length): the passages of each half, each of them twice.

    >>> repeat_passages(torch.tensor([[0, 1, 2, 3, 4]]), prefix=1)
    tensor([[[0, 1, 2, 1, 2],
             [0, 3, 4, 3, 4]]])
    """
    body = sequences[:, prefix:]
    width = body.shape[1]
    passages = max(1, round(width / (2 * PASSAGE)))
    size = math.ceil(width / (2 * passages))
    halves = torch.stack([body[:, : passages * size], body[:, -passages * size :]], dim=1)
    twice = halves.unflatten(-1, (passages, size)).repeat(1, 1, 1, 2).flatten(2)[..., :width]
    return torch.cat([sequences[:, None, :prefix].expand(-1, 2, -1), twice], dim=-1)
