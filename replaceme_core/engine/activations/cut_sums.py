"""The sums of candidate cuts, over the fit tokens and over the held-out tokens.

The sums serve every ridge, and give the residual of every candidate without a second pass
(docs/explanation/method.md, "One pass"). Held-out tokens are summed in two halves: a map that is fitted on one half and
evaluated on the other shows which cuts need the fit tokens, before any of these is run (`Screen`).
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol, Self

import torch

from replaceme_core.engine.activations.tensor_store import (
    TensorStore,
    stream_key,
)
from replaceme_core.engine.model.block_runner import BlockRunner
from replaceme_core.engine.model.changes import Cut
from replaceme_core.engine.numerics.stream import MeanAngle, Stream, token_weights
from replaceme_core.engine.numerics.sums import EndSums, Moments, WriteSums
from replaceme_core.families.layout import MapStructure
from replaceme_core.families.resolve import ResolvedModel
from replaceme_core.request.defaults import HELD_OUT_BATCHES

FIT, FIRST_HALF, SECOND_HALF = PARTS = range(3)
"""Parts of the tokens that have sums of their own: the fit tokens, and two halves of the held-out ones."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """`tokens` (sequences, positions) on the host; those of a held-out batch come from one `source`.

    Every second held-out batch of a source belongs to the `second_half`. Of a held-out batch, `scored` (sequences,
    positions) tells which tokens a candidate must predict; `None`: all but the first.
    """

    tokens: torch.Tensor
    held_out: bool = False
    second_half: bool = False
    source: int = 0
    scored: torch.Tensor | None = None

    @property
    def predictions(self) -> int:
        """How many tokens a candidate must predict."""
        if self.scored is None:
            return self.tokens[:, 1:].numel()
        return int(self.scored[:, 1:].sum())

    @property
    def positions(self) -> int:
        """How many positions have to be run for them: the last one that is predicted follows."""
        if self.scored is None:
            return self.tokens.shape[1]
        return int(self.scored.any(dim=0).nonzero().max()) + 1

    @property
    def part(self) -> int:
        """`FIT`, `FIRST_HALF` or `SECOND_HALF`."""
        return FIT if not self.held_out else SECOND_HALF if self.second_half else FIRST_HALF


def schedule(
    fit: torch.Tensor,
    held_out: torch.Tensor,
    batch_size: int,
    *,
    sources: torch.Tensor | None = None,
    scored: torch.Tensor | None = None,
) -> list[Batch]:
    """The batches of a pass: those of the fit tokens, then the held-out ones.

    `sources` (held-out sequences,) tells where each of these comes from; `None`: all from one source. The batches of
    sources alternate in proportion, so that the first of them have a part of each. `scored` has those of `Batch`.
    """
    small = min(batch_size, max(1, len(held_out) // HELD_OUT_BATCHES))
    if sources is None:
        sources = torch.zeros(len(held_out), dtype=torch.long)
    placed: list[tuple[float, Batch]] = []
    for source in sources.unique().tolist():
        parts = held_out[sources == source].split(small)
        counts = [None] * len(parts) if scored is None else scored[sources == source].split(small)
        placed += [
            (
                (number + 0.5) / len(parts),
                Batch(tokens=tokens, held_out=True, second_half=number % 2 == 1, source=source, scored=count),
            )
            for number, (tokens, count) in enumerate(zip(parts, counts, strict=True))
        ]
    held_out_batches = [batch for _, batch in sorted(placed, key=lambda one: one[0])]
    return [*(Batch(tokens=tokens) for tokens in fit.split(batch_size)), *held_out_batches]


@dataclass(kw_only=True)
class CutStatistics:
    """The sums of one candidate over fit tokens and held-out tokens, and the angular distance across it.

    `sinks` is the number of tokens that are sinks at either end.
    """

    cut: Cut
    fit: Moments
    held_out: Moments
    diagonal: bool = False
    angle: MeanAngle = field(default_factory=MeanAngle)
    sinks: int = 0

    @property
    def tokens(self) -> int:
        """Number of tokens in both sums."""
        return self.fit.tokens + self.held_out.tokens


class Screen(Protocol):
    """Excludes cuts before the fit tokens are run for them."""

    def add(self, statistics: CutStatistics) -> None:
        """Add one of the cuts: sums over two halves of the held-out tokens, the first as `fit`.

        The sums must not be stored: the halves are merged afterwards.
        """

    def remaining(self) -> list[Cut]:
        """The cuts that remain of those added so far. One that is excluded stays excluded."""


@dataclass(kw_only=True)
class CutSums:
    """What a cut adds to the sums of its anchor block. Tokens that are sinks at either end are scaled down."""

    ends: EndSums
    angle: MeanAngle = field(default_factory=MeanAngle)
    sinks: int = 0

    def add(self, *, write: torch.Tensor, kept: Stream, end: Stream) -> None:
        """Add a batch: `write` (batch, positions, d) and the streams at both ends."""
        own = token_weights(kept)
        weights = torch.minimum(own, token_weights(end))
        self.sinks += int((weights < 1).sum())
        self.angle.add(kept, end, mask=weights == 1)
        self.ends.add(write.flatten(0, 1), kept=kept, end=end, weights=weights, own=own)

    def include(self, other: Self) -> None:
        """Add the sums over other tokens."""
        self.ends.include(other.ends)
        self.angle.include(other.angle)
        self.sinks += other.sinks


@dataclass(frozen=True, kw_only=True)
class WindowSums:
    """The sums of several cuts, of any lengths, over one part of the tokens, added up batch by batch.

    M'M of what the MLP of an anchor block writes is shared by all cuts after it.
    """

    anchors: Mapping[int, WriteSums]
    cuts: Mapping[Cut, CutSums]

    @classmethod
    def empty(cls, cuts: Iterable[Cut], resolved: ResolvedModel) -> Self:
        """Sums over no tokens."""
        width, device, cuts = resolved.model.config.hidden_size, resolved.model.device, list(cuts)
        return cls(
            anchors={cut.anchor: WriteSums.zeros(width, device=device) for cut in cuts},
            cuts={cut: CutSums(ends=EndSums.zeros(width, device=device)) for cut in cuts},
        )

    @property
    def last_block(self) -> int:
        """The last block that has to run."""
        return max(cut.end for cut in self.cuts)

    def run(
        self, block_runner: BlockRunner, tokens: torch.Tensor, *, before: TensorStore | None = None
    ) -> torch.Tensor:
        """Run a batch (sequences, positions) and add it; returns the stream after the last block that was run.

        The streams before anchor blocks are put into `before`.
        """
        last_end = {anchor: max(cut.end for cut in self.cuts if cut.anchor == anchor) for anchor in self.anchors}
        stream = block_runner.enter(tokens)
        waiting: dict[int, tuple[torch.Tensor, Stream]] = {}  # anchor block -> its MLP's write and its output
        for block in range(self.last_block + 1):
            if block in self.anchors:
                if before is not None:
                    before.put(stream_key(block), stream)
                stream, write = block_runner.run_with_mlp_write(block, stream)
                here = Stream(stream.flatten(0, 1))
                self.anchors[block].add(write.flatten(0, 1), weights=token_weights(here))
                waiting[block] = (write, here)
            else:
                stream = block_runner.run(block, stream)
                here = Stream(stream.flatten(0, 1))
            for cut, sums in self.cuts.items():
                if cut.end == block:
                    write, kept = waiting[cut.anchor]
                    sums.add(write=write, kept=kept, end=here)
            waiting = {anchor: pair for anchor, pair in waiting.items() if last_end[anchor] > block}
        return stream

    def add(self, cut: Cut, *, write: torch.Tensor, kept: torch.Tensor, end: torch.Tensor) -> None:
        """Add a batch to the sums of `cut` and to those of its anchor; all (batch, positions, d)."""
        start = Stream(kept.flatten(0, 1))
        self.anchors[cut.anchor].add(write.flatten(0, 1), weights=token_weights(start))
        self.cuts[cut].add(write=write, kept=start, end=Stream(end.flatten(0, 1)))

    def merged(self, other: Self, cuts: Collection[Cut]) -> Self:
        """The sums over the tokens of both, for some of the cuts. Consumes both."""
        for anchor in {cut.anchor for cut in cuts}:
            self.anchors[anchor].include(other.anchors[anchor])
        for cut in cuts:
            self.cuts[cut].include(other.cuts[cut])
        return type(self)(
            anchors={anchor: self.anchors[anchor] for anchor in sorted({cut.anchor for cut in cuts})},
            cuts={cut: self.cuts[cut] for cut in cuts},
        )


def statistics_of(fit: WindowSums, held_out: WindowSums, resolved: ResolvedModel) -> list[CutStatistics]:
    """The statistics of the cuts of `fit`, with the sums of the same cuts over the held-out tokens."""
    found = []
    for cut, sums in fit.cuts.items():
        others = held_out.cuts[cut]
        angle = replace(sums.angle)
        angle.include(others.angle)
        found.append(
            CutStatistics(
                cut=cut,
                fit=sums.ends.moments(fit.anchors[cut.anchor]),
                held_out=others.ends.moments(held_out.anchors[cut.anchor]),
                diagonal=resolved.structure is MapStructure.DIAGONAL,
                angle=angle,
                sinks=sums.sinks + others.sinks,
            )
        )
    return found
