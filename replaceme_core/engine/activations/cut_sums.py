"""The sums of each candidate cut, over the fit tokens and over the held-out tokens.

Held-out tokens are summed in two halves: a map that is fitted on one half and evaluated on the other shows which cuts
need the fit tokens, before any of these is run (`Screen`).
"""

from dataclasses import dataclass, field, replace
from typing import Protocol, Self

import torch

from replaceme_core.engine.model.cut import Cut
from replaceme_core.engine.numerics.distance import MeanAngle
from replaceme_core.engine.numerics.moments import Moments
from replaceme_core.engine.numerics.sinks import token_weights
from replaceme_core.engine.numerics.stream import Stream
from replaceme_core.engine.numerics.sums import EndSums, WriteSums
from replaceme_core.families.layout import MapStructure
from replaceme_core.families.resolve import ResolvedModel


@dataclass(kw_only=True)
class CutStatistics:
    """The sums of one candidate over fit tokens and held-out tokens, and the angular distance across it.

    `sinks` is the number of tokens that are sinks at either end.
    """

    cut: Cut
    fit: Moments
    held_out: Moments
    structure: MapStructure = MapStructure.FULL
    angle: MeanAngle = field(default_factory=MeanAngle)
    sinks: int = 0

    @property
    def tokens(self) -> int:
        """Number of tokens in both sums."""
        return self.fit.tokens + self.held_out.tokens


@dataclass(frozen=True, kw_only=True)
class AnchorSums:
    """The part of the sums that all cuts after one anchor block share: M'M of what its MLP writes."""

    fit: WriteSums
    held_out: WriteSums

    @classmethod
    def empty(cls, resolved: ResolvedModel, *, held_out: bool = True) -> Self:
        """Sums over no tokens; without `held_out`, the held-out sums take no memory."""
        width, device = resolved.model.config.hidden_size, resolved.model.device
        held_out_sums = WriteSums.zeros(width if held_out else 0, device=device)
        return cls(fit=WriteSums.zeros(width, device=device), held_out=held_out_sums)

    def add(self, *, write: torch.Tensor, kept: Stream, held_out: bool) -> None:
        """Add a batch: `write` (batch, positions, d) and the stream `kept` after the block."""
        (self.held_out if held_out else self.fit).add(write.flatten(0, 1), weights=token_weights(kept))

    def merge_halves(self) -> Self:
        """Where `fit` and `held_out` are two halves of the held-out tokens: both in `held_out`. Consumes these sums."""
        self.fit.include(self.held_out)
        return replace(self, fit=self.held_out.zero_width(), held_out=self.fit)

    def with_held_out(self, held_out: Self) -> Self:
        """These sums over the fit tokens, with the held-out sums of `held_out`."""
        return replace(self, held_out=held_out.held_out)


@dataclass(kw_only=True)
class CutSums:
    """What a cut adds to the sums of its anchor block. Tokens that are sinks at either end are scaled down."""

    cut: Cut
    fit: EndSums
    held_out: EndSums
    structure: MapStructure
    angle: MeanAngle = field(default_factory=MeanAngle)
    sinks: int = 0

    @classmethod
    def empty(cls, cut: Cut, *, resolved: ResolvedModel, held_out: bool = True) -> Self:
        """As `AnchorSums.empty`."""
        width, device = resolved.model.config.hidden_size, resolved.model.device
        held_out_sums = EndSums.zeros(width if held_out else 0, device=device)
        return cls(
            cut=cut, fit=EndSums.zeros(width, device=device), held_out=held_out_sums, structure=resolved.structure
        )

    def add(self, *, write: torch.Tensor, kept: Stream, end: Stream, held_out: bool) -> None:
        """Add a batch: `write` (batch, positions, d) and the streams at both ends."""
        own = token_weights(kept)
        weights = torch.minimum(own, token_weights(end))
        self.sinks += int((weights < 1).sum())
        self.angle.add(kept, end, mask=weights == 1)
        sums = self.held_out if held_out else self.fit
        sums.add(write.flatten(0, 1), kept=kept, end=end, weights=weights, own=own)

    def merge_halves(self) -> Self:
        """As `AnchorSums.merge_halves`."""
        self.fit.include(self.held_out)
        return replace(self, fit=self.held_out.zero_width(), held_out=self.fit)

    def with_held_out(self, held_out: Self) -> Self:
        """As `AnchorSums.with_held_out`; consumes both."""
        self.angle.include(held_out.angle)
        return replace(self, held_out=held_out.held_out, sinks=self.sinks + held_out.sinks)

    def statistics(self, anchor: AnchorSums) -> CutStatistics:
        return CutStatistics(
            cut=self.cut,
            fit=self.fit.moments(anchor.fit),
            held_out=self.held_out.moments(anchor.held_out),
            structure=self.structure,
            angle=self.angle,
            sinks=self.sinks,
        )


class Screen(Protocol):
    """Excludes cuts before the fit tokens are run for them."""

    def add(self, statistics: CutStatistics) -> None:
        """Take in one of the cuts: sums over two halves of the held-out tokens, the first as `fit`.

        The sums must not be stored: the halves are merged afterwards.
        """

    def remaining(self) -> list[Cut]:
        """The cuts that remain of those added so far. One that is excluded stays excluded."""
