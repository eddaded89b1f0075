"""The batches of a pass, and the sums of a cut over the fit tokens and over the held-out tokens.

The sums serve every ridge, and give the residual of the map without a second pass (docs/explanation/method.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from replaceme_core.engine.model.changes import Cut, FittedCut
from replaceme_core.engine.numerics.stream import MeanAngle, Stream, token_weights
from replaceme_core.engine.numerics.sums import Moments
from replaceme_core.engine.text.drawing import TokenSet, alternating
from replaceme_core.request.defaults import HELD_OUT_BATCHES


@dataclass(frozen=True, kw_only=True)
class Batch:
    """`tokens` (sequences, positions) on the host; those of a held-out batch come from one `source`.

    Every second held-out batch of a source belongs to the `second_half`. Of a held-out batch, `scored` (sequences,
    positions) tells which tokens a candidate must predict, but never the first; nothing follows the last of them.
    """

    tokens: torch.Tensor
    held_out: bool = False
    second_half: bool = False
    source: int = 0
    scored: torch.Tensor | None = None

    @property
    def predictions(self) -> int:
        """How many tokens a candidate must predict."""
        return self.tokens[:, 1:].numel() if self.scored is None else int(self.scored[:, 1:].sum())


def schedule(text: TokenSet, batch_size: int) -> list[Batch]:
    """The batches of a pass: those of the fit tokens, then the held-out ones.

    The held-out batches of sources alternate in proportion, so that the first of them have a part of each. What follows
    the last scored token of a batch is not run.
    """
    small, sources = min(batch_size, max(1, len(text.held_out) // HELD_OUT_BATCHES)), text.held_out_sources
    scored = torch.ones_like(text.held_out, dtype=torch.bool) if text.held_out_scored is None else text.held_out_scored
    held_out: list[Batch] = []
    for source in sources.unique().tolist():
        parts, counts = (values[sources == source].split(small) for values in (text.held_out, scored))
        for number, (tokens, count) in enumerate(zip(parts, counts, strict=True)):
            end = int(count.any(dim=0).nonzero().max()) + 1
            batch = Batch(
                tokens=tokens[:, :end],
                held_out=True,
                second_half=number % 2 == 1,
                source=source,
                scored=count[:, :end],
            )
            held_out.append(batch)
    turns = alternating(torch.tensor([batch.source for batch in held_out], dtype=torch.long))
    return [
        *(Batch(tokens=tokens) for tokens in text.fit.split(batch_size)),
        *(held_out[turn] for turn in turns.tolist()),
    ]


@dataclass(kw_only=True)
class CutStatistics:
    """The sums of one cut over fit tokens and held-out tokens, and the angular distance across it.

    The prefix is pruned by `done`. A map of them is to be `diagonal` or not. Tokens that are sinks at either end,
    `sinks` of them, are scaled down.
    """

    cut: Cut
    done: Sequence[FittedCut]
    fit: Moments
    held_out: Moments
    diagonal: bool
    angle: MeanAngle = field(default_factory=MeanAngle)
    sinks: int = 0

    @property
    def tokens(self) -> int:
        """Number of tokens in both sums."""
        return self.fit.tokens + self.held_out.tokens

    def add(self, write: torch.Tensor, *, kept: Stream, end: Stream, held_out: bool) -> None:
        """Add a batch: `write` (tokens, d) and the streams at both ends."""
        weights = token_weights(kept, end)
        self.sinks += int((weights < 1).sum())
        self.angle.add(kept, end, mask=weights == 1)
        (self.held_out if held_out else self.fit).add(write, kept=kept, end=end, weights=weights)
