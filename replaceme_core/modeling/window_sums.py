"""One pass over the calibration tokens from which every window can be scored (method.md, section 4)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch

from replaceme_core.families.resolve import ResolvedModel
from replaceme_core.modeling.blockwise import BlockwiseModel
from replaceme_core.modeling.capture import Cut, CutStatistics, CutSums, HeldOutStreams, KeeperSums, schedule
from replaceme_core.numerics.stream import Stream


@dataclass(frozen=True, kw_only=True)
class WindowSums:
    """The sums of several cuts, of any lengths, gathered batch by batch."""

    keepers: Mapping[int, KeeperSums]
    cuts: Mapping[Cut, CutSums]

    @classmethod
    def empty(cls, cuts: Sequence[Cut], *, resolved: ResolvedModel, fit: bool = True, held_out: bool = True) -> Self:
        """As `KeeperSums.empty`."""
        comes = {"fit": fit, "held_out": held_out}
        return cls(
            keepers={cut.keeper: KeeperSums.empty(resolved, **comes) for cut in cuts},
            cuts={cut: CutSums.empty(cut, resolved=resolved, **comes) for cut in cuts},
        )

    @property
    def last_block(self) -> int:
        """Nothing after it is run."""
        return max(cut.end for cut in self.cuts)

    def add(
        self,
        blockwise: BlockwiseModel,
        tokens: torch.Tensor,
        *,
        held_out: bool,
        before: Mapping[int, list[torch.Tensor]] | None = None,
    ) -> torch.Tensor:
        """Run a batch (sequences, positions); returns the stream after the last block that was run.

        The lists in `before` get the streams before their keepers.
        """
        last_end = {keeper: max(cut.end for cut in self.cuts if cut.keeper == keeper) for keeper in self.keepers}
        stream = blockwise.enter(tokens)
        waiting: dict[int, tuple[torch.Tensor, Stream]] = {}  # keeper -> its write and its output
        for block in range(self.last_block + 1):
            if before is not None and block in before:
                before[block].append(stream)
            if block in self.keepers:
                stream, write = blockwise.run_tapped(block, stream)
                here = Stream(stream.flatten(0, 1))
                self.keepers[block].add(write=write, kept=here, held_out=held_out)
                waiting[block] = (write, here)
            else:
                stream = blockwise.run(block, stream)
                here = Stream(stream.flatten(0, 1))
            for cut, sums in self.cuts.items():
                if cut.end == block:
                    write, kept = waiting[cut.keeper]
                    sums.add(write=write, kept=kept, end=here, held_out=held_out)
            waiting = {keeper: pair for keeper, pair in waiting.items() if last_end[keeper] > block}
        return stream

    def add_fit(
        self, blockwise: BlockwiseModel, batches: Sequence[torch.Tensor], *, step: Callable[[int], None]
    ) -> None:
        """Run the fit `batches`; `step` is told the tokens of each."""
        for batch in batches:
            self.add(blockwise, batch.to(blockwise.resolved.model.device), held_out=False)
            step(batch.numel())

    def add_held_out(
        self, blockwise: BlockwiseModel, batches: Sequence[torch.Tensor], *, step: Callable[[int], None]
    ) -> HeldOutStreams:
        """Run the held-out `batches`; `step` is told the tokens of each."""
        device, whole = blockwise.resolved.model.device, self.last_block == len(blockwise.blocks) - 1
        tokens = [batch.to(device) for batch in batches]
        before: dict[int, list[torch.Tensor]] = {keeper: [] for keeper in self.keepers}
        last: list[torch.Tensor] = []
        for batch in tokens:
            stream = self.add(blockwise, batch, held_out=True, before=before)
            if whole:
                last.append(stream)
            step(batch.numel())
        return HeldOutStreams(tokens=tokens, before=before, last=last)

    def include(self, other: Self) -> None:
        """Add the sums of the same cuts over other tokens."""
        for keeper, sums in other.keepers.items():
            self.keepers[keeper].fit.include(sums.fit)
            self.keepers[keeper].held_out.include(sums.held_out)
        for cut, each in other.cuts.items():
            mine = self.cuts[cut]
            mine.fit.include(each.fit)
            mine.held_out.include(each.held_out)
            mine.angle.include(each.angle)
            mine.sinks += each.sinks

    def judged_by(self, other: Self) -> Self:
        """These, over the fit tokens, with the `other` ones over the held-out tokens. Takes the place of both."""
        for cut, each in other.cuts.items():
            self.cuts[cut].angle.include(each.angle)
            self.cuts[cut].sinks += each.sinks
        return type(self)(
            keepers={
                keeper: replace(sums, held_out=other.keepers[keeper].held_out) for keeper, sums in self.keepers.items()
            },
            cuts={cut: replace(sums, held_out=other.cuts[cut].held_out) for cut, sums in self.cuts.items()},
        )

    def statistics(self) -> list[CutStatistics]:
        return [sums.statistics(self.keepers[cut.keeper]) for cut, sums in self.cuts.items()]


def counting(advance: Callable[[float], None], *, total: int) -> Callable[[int], None]:
    """What is to be told the tokens of each batch, of `total`."""
    done = 0

    def step(tokens: int) -> None:
        nonlocal done
        done += tokens
        advance(done / total)

    return step


class WindowsPass(Protocol):
    """Gathers the sums of windows, and the held-out streams before their keepers."""

    def __call__(
        self,
        blockwise: BlockwiseModel,
        cuts: Sequence[Cut],
        *,
        fit: torch.Tensor,
        held_out: torch.Tensor,
        batch_size: int,
        advance: Callable[[float], None],
    ) -> tuple[list[CutStatistics], HeldOutStreams]: ...


def capture_windows(
    blockwise: BlockwiseModel,
    cuts: Sequence[Cut],
    *,
    fit: torch.Tensor,
    held_out: torch.Tensor,
    batch_size: int,
    advance: Callable[[float], None],
) -> tuple[list[CutStatistics], HeldOutStreams]:
    """Score all `cuts`, of any lengths, in one pass over `fit` and `held_out` (sequences, length)."""
    sums = WindowSums.empty(cuts, resolved=blockwise.resolved)
    step = counting(advance, total=fit.numel() + held_out.numel())
    work = schedule(fit, held_out, batch_size)
    sums.add_fit(blockwise, [batch for batch, is_held_out in work if not is_held_out], step=step)
    judges = [batch for batch, is_held_out in work if is_held_out]
    streams = sums.add_held_out(blockwise, judges, step=step)
    return sums.statistics(), streams
