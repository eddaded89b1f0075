"""Sequences that repeat a passage: what the model predicts in the second copy it owes to the first.

A model without some of its blocks may predict ordinary text well and no longer make use of what came before, which
held-out text hardly shows (docs/explanation/how-the-default-works.md#repeated). The passages are those of sequences
at hand, so they need no further text and are of any language.
"""

import math
from collections import Counter
from dataclasses import replace

import torch

from replaceme_core.engine.text.packing import TokenSet
from replaceme_core.engine.text.tokens import with_source
from replaceme_core.request.method import Method
from replaceme_core.request.resolve import ResolvedCalibration

NAME = "repeated passages"
"""The name of the source in reports."""
PASSAGE = 128
"""Tokens, about."""


def with_repeated(tokens: TokenSet, calibration: ResolvedCalibration, *, method: Method, prefix: int) -> TokenSet:
    """`tokens` with the sequences of repeated passages that `calibration` asks for, a source of their own.

    Fitted ones are made of fitted sequences, those that `method` holds out of held-out sequences of every source in
    turn. Each begins with the first `prefix` tokens of the sequence that it is made of.
    """
    count = calibration.repeating
    if count == 0:
        return tokens
    fit = repeat_passages(tokens.fit[: math.ceil(count / 2)], prefix=prefix).flatten(0, 1)[:count]
    of_each = _in_turn(tokens.held_out, tokens.held_out_sources)[: calibration.repeating_held_out(method)]
    held_out = repeat_passages(of_each, prefix=prefix)[:, 0]
    named = replace(tokens, sources=(*tokens.sources, NAME))
    return with_source(named, len(tokens.sources), fit=fit, held_out=held_out, seed=calibration.seed)


def _in_turn(sequences: torch.Tensor, sources: torch.Tensor) -> torch.Tensor:
    """The first sequence of each source, then the second of each, and so on."""
    seen: Counter[int] = Counter()
    places: list[tuple[int, int, int]] = []
    for number, source in enumerate(sources.tolist()):
        places.append((seen[source], source, number))
        seen[source] += 1
    return sequences[[number for _, _, number in sorted(places)]]


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
