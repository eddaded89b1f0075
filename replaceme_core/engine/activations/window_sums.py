"""One pass over the calibration tokens that gathers the sums of every window.

The sums serve every ridge, and give the residual of every candidate without a second pass
(docs/explanation/method.md, "One pass").
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch

from replaceme_core.engine.activations.batches import Batch, schedule
from replaceme_core.engine.activations.cut_sums import AnchorSums, CutStatistics, CutSums, Screen
from replaceme_core.engine.activations.held_out_streams import HeldOutStreams, stored_held_out
from replaceme_core.engine.activations.tensor_store import MemoryStore, TensorStore, stream_key
from replaceme_core.engine.model.block_runner import BlockRunner
from replaceme_core.engine.model.cut import Cut, FittedCut, run_pruned
from replaceme_core.engine.numerics.stream import Stream
from replaceme_core.families.resolve import ResolvedModel


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
