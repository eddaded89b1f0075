"""The sums of candidate cuts, over the fit tokens and over the held-out tokens, and a pass for those of windows.

The sums serve every ridge, and give the residual of every candidate without a second pass
(docs/explanation/method.md, "One pass"). Held-out tokens are summed in two halves: a map that is fitted on one half and
evaluated on the other shows which cuts need the fit tokens, before any of these is run (`Screen`).
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, Self

import torch

from replaceme_core.engine.activations.tensor_store import (
    HeldOutStreams,
    MemoryStore,
    TensorStore,
    stored_held_out,
    stream_key,
)
from replaceme_core.engine.model.block_runner import BlockRunner
from replaceme_core.engine.model.changes import Cut, FittedCut, run_pruned
from replaceme_core.engine.numerics.stream import MeanAngle, Stream, token_weights
from replaceme_core.engine.numerics.sums import EndSums, Moments, WriteSums
from replaceme_core.families.layout import MapStructure
from replaceme_core.families.resolve import ResolvedModel

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
    diagonal: bool
    angle: MeanAngle = field(default_factory=MeanAngle)
    sinks: int = 0

    @classmethod
    def empty(cls, cut: Cut, *, resolved: ResolvedModel, held_out: bool = True) -> Self:
        """As `AnchorSums.empty`."""
        width, device = resolved.model.config.hidden_size, resolved.model.device
        held_out_sums = EndSums.zeros(width if held_out else 0, device=device)
        return cls(
            cut=cut,
            fit=EndSums.zeros(width, device=device),
            held_out=held_out_sums,
            diagonal=resolved.structure is MapStructure.DIAGONAL,
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
            diagonal=self.diagonal,
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


@dataclass(frozen=True, kw_only=True)
class WindowSums:
    """The sums of several cuts, of any lengths, added up batch by batch."""

    anchors: Mapping[int, AnchorSums]
    cuts: Mapping[Cut, CutSums]

    @classmethod
    def empty(cls, cuts: Sequence[Cut], *, resolved: ResolvedModel, held_out: bool = True) -> Self:
        """As `AnchorSums.empty`."""
        return cls(
            anchors={cut.anchor: AnchorSums.empty(resolved, held_out=held_out) for cut in cuts},
            cuts={cut: CutSums.empty(cut, resolved=resolved, held_out=held_out) for cut in cuts},
        )

    @property
    def last_block(self) -> int:
        """The last block that has to run."""
        return max(cut.end for cut in self.cuts)

    def add(
        self,
        block_runner: BlockRunner,
        tokens: torch.Tensor,
        *,
        second_half: bool = False,
        before: TensorStore | None = None,
    ) -> torch.Tensor:
        """Run a batch (sequences, positions) and add it; returns the stream after the last block that was run.

        It is added to the sums over the fit tokens or, with `second_half`, to the held-out ones. The streams before
        anchor blocks are put into `before`.
        """
        last_end = {anchor: max(cut.end for cut in self.cuts if cut.anchor == anchor) for anchor in self.anchors}
        stream = block_runner.enter(tokens)
        waiting: dict[int, tuple[torch.Tensor, Stream]] = {}  # anchor block -> its MLP's write and its output
        for block in range(self.last_block + 1):
            if before is not None and block in self.anchors:
                before.put(stream_key(block), stream)
            if block in self.anchors:
                stream, write = block_runner.run_with_mlp_write(block, stream)
                here = Stream(stream.flatten(0, 1))
                self.anchors[block].add(write=write, kept=here, held_out=second_half)
                waiting[block] = (write, here)
            else:
                stream = block_runner.run(block, stream)
                here = Stream(stream.flatten(0, 1))
            for cut, sums in self.cuts.items():
                if cut.end == block:
                    write, kept = waiting[cut.anchor]
                    sums.add(write=write, kept=kept, end=here, held_out=second_half)
            waiting = {anchor: pair for anchor, pair in waiting.items() if last_end[anchor] > block}
        return stream

    def add_cut(
        self, cut: Cut, *, write: torch.Tensor, kept: torch.Tensor, end: torch.Tensor, second_half: bool, anchor: bool
    ) -> None:
        """Add a batch to the sums of `cut`, with `anchor` also to those of its anchor; all (batch, positions, d)."""
        start = Stream(kept.flatten(0, 1))
        if anchor:
            self.anchors[cut.anchor].add(write=write, kept=start, held_out=second_half)
        self.cuts[cut].add(write=write, kept=start, end=Stream(end.flatten(0, 1)), held_out=second_half)

    def add_fit(self, block_runner: BlockRunner, batches: Sequence[Batch], *, step: Callable[[int], None]) -> None:
        """Run and add the fit `batches`; `step` is called with the number of tokens of each."""
        for batch in batches:
            self.add(block_runner, batch.tokens.to(block_runner.resolved.model.device))
            step(batch.tokens.numel())

    def add_held_out(
        self,
        block_runner: BlockRunner,
        batches: Sequence[Batch],
        *,
        step: Callable[[int], None],
        streams: TensorStore | None = None,
        at_once: int = 1,
    ) -> HeldOutStreams:
        """Run the held-out `batches` and add each half to its sums; `step` as in `add_fit`.

        The streams before anchor blocks, and the one after the last block if it is run, are put into `streams`, or
        into memory; `at_once` as in `HeldOutStreams`.
        """
        streams = MemoryStore() if streams is None else streams
        device, blocks = block_runner.resolved.model.device, len(block_runner.blocks)
        tokens = [batch.tokens.to(device) for batch in batches]
        for batch, ids in zip(batches, tokens, strict=True):
            stream = self.add(block_runner, ids, second_half=batch.second_half, before=streams)
            if self.last_block == blocks - 1:
                streams.put(stream_key(blocks), stream)
            step(ids.numel())
        return stored_held_out(streams, tokens=tokens, blocks=blocks, at_once=at_once)

    def merge_halves(self, cuts: Collection[Cut]) -> Self:
        """As `AnchorSums.merge_halves`, for some of the cuts."""
        return type(self)(
            anchors={anchor: self.anchors[anchor].merge_halves() for anchor in sorted({cut.anchor for cut in cuts})},
            cuts={cut: self.cuts[cut].merge_halves() for cut in cuts},
        )

    def with_held_out(self, held_out: Self) -> Self:
        """These sums over the fit tokens, with the held-out sums of `held_out` for the same cuts. Consumes both."""
        return type(self)(
            anchors={anchor: self.anchors[anchor].with_held_out(sums) for anchor, sums in held_out.anchors.items()},
            cuts={cut: self.cuts[cut].with_held_out(sums) for cut, sums in held_out.cuts.items()},
        )

    def statistics(self) -> list[CutStatistics]:
        return [sums.statistics(self.anchors[cut.anchor]) for cut, sums in self.cuts.items()]


def token_progress(advance: Callable[[float], None], *, total: int) -> Callable[[int], None]:
    """A function to call with the number of tokens of each batch; it reports the part of `total` to `advance`."""
    done = 0

    def step(tokens: int) -> None:
        nonlocal done
        done += tokens
        advance(done / total)

    return step


def apply_screen(halves: WindowSums, screen: Screen | None) -> WindowSums:
    """The cuts in `halves` that `screen` leaves, with their halves merged. Consumes `halves`."""
    if screen is None:
        return halves.merge_halves(halves.cuts)
    for one in halves.statistics():
        screen.add(one)
    return halves.merge_halves(screen.remaining())


Windows = tuple[list[CutStatistics], HeldOutStreams]


def capture_windows(
    block_runner: BlockRunner,
    cuts: Sequence[Cut],
    *,
    fit: torch.Tensor,
    held_out: torch.Tensor,
    batch_size: int,
    advance: Callable[[float], None],
    sources: torch.Tensor | None = None,
    streams: TensorStore | None = None,
    screen: Screen | None = None,
) -> Windows:
    """The sums of `cuts`, of any lengths, from one pass over `held_out` and then `fit` (sequences, length).

    The held-out streams before their anchor blocks are put into `streams`, or into memory. With a `screen`, the fit
    tokens are run only for the cuts that remain. `sources` are those of the held-out sequences (`schedule`).
    """
    step = token_progress(advance, total=fit.numel() + held_out.numel())
    work = schedule(fit, held_out, batch_size, sources=sources)
    halves = WindowSums.empty(cuts, resolved=block_runner.resolved)
    held_out_work = [batch for batch in work if batch.held_out]
    held = halves.add_held_out(block_runner, held_out_work, streams=streams, step=step, at_once=batch_size)
    held_out_sums = apply_screen(halves, screen)
    del halves
    sums = WindowSums.empty(list(held_out_sums.cuts), resolved=block_runner.resolved, held_out=False)
    sums.add_fit(block_runner, [batch for batch in work if not batch.held_out], step=step)
    return sums.with_held_out(held_out_sums).statistics(), held


def capture_next_cut(
    block_runner: BlockRunner,
    cut: Cut,
    *,
    done: Sequence[FittedCut],
    fit: torch.Tensor,
    held_out: torch.Tensor,
    batch_size: int,
    advance: Callable[[float], None],
    sources: torch.Tensor | None = None,
) -> CutStatistics:
    """Statistics of one `cut` whose prefix is already pruned by `done`, toward the dense model's stream at its end.

    The reference fits every map on the unpruned model, so that later maps are fitted to inputs that never occur.
    """
    step = token_progress(advance, total=fit.numel() + held_out.numel())
    sums, halves = sums_of_cut(cut, resolved=block_runner.resolved)
    for batch in schedule(fit, held_out, batch_size, sources=sources):
        start = block_runner.enter(batch.tokens.to(block_runner.resolved.model.device))
        pruned, write = run_pruned(block_runner, start, done=done, until=cut.anchor)
        dense, first = (start, 0) if done else (pruned, cut.start)
        for block in range(first, cut.end + 1):
            dense = block_runner.run(block, dense)
        into = halves if batch.held_out else sums
        into.add_cut(cut, write=write, kept=pruned, end=dense, second_half=batch.second_half, anchor=True)
        step(batch.tokens.numel())
    return sums.with_held_out(halves.merge_halves([cut])).statistics()[0]


def sums_of_cut(
    cut: Cut, *, resolved: ResolvedModel, anchors: tuple[AnchorSums, AnchorSums] | None = None
) -> tuple[WindowSums, WindowSums]:
    """Empty sums over the fit tokens and over two halves of the held-out tokens; with known sums of the `anchors`."""
    sums = WindowSums.empty([cut], resolved=resolved, held_out=False)
    halves = WindowSums.empty([cut], resolved=resolved)
    if anchors is None:
        return sums, halves
    first, second = ({cut.anchor: anchor} for anchor in anchors)
    return replace(sums, anchors=first), replace(halves, anchors=second)
