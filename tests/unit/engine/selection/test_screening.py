"""Cuts that the held-out tokens show to be behind get no fit tokens; for the others nothing changes."""

import math
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass, field

import pytest
import torch

from replaceme_core.engine.activations.cut_sums import CutStatistics, capture_windows
from replaceme_core.engine.activations.tensor_store import MemoryStore
from replaceme_core.engine.methods.windows import Screening
from replaceme_core.engine.model.changes import Cut
from replaceme_core.engine.numerics.solve import solve_delta
from tests.fixtures.models.activations import CUTS, HELD_OUT, make_activations
from tests.fixtures.models.tiny import BLOCKS

LEFT = [Cut(start=1, end=2), Cut(start=2, end=3)]


@dataclass
class Fixed:
    """Leaves the same cuts whatever it sees."""

    seen: dict[Cut, CutStatistics] = field(default_factory=dict)

    def add(self, statistics: CutStatistics) -> None:
        self.seen[statistics.cut] = deepcopy(statistics)

    def remaining(self) -> list[Cut]:
        return [cut for cut in LEFT if cut in self.seen]


def equal(some: Iterable[CutStatistics], others: Iterable[CutStatistics]) -> bool:
    return all(
        torch.equal(getattr(mine, name).gram, getattr(theirs, name).gram)
        and torch.equal(getattr(mine, name).cross, getattr(theirs, name).cross)
        and (mine.cut, mine.sinks, mine.angle.total, mine.tokens)
        == (theirs.cut, theirs.sinks, theirs.angle.total, theirs.tokens)
        for mine, theirs in zip(some, others, strict=True)
        for name in ("fit", "held_out")
    )


@torch.inference_mode()
@pytest.mark.parametrize(
    "fields",
    [
        lambda: {},
        lambda: {"store": MemoryStore()},
    ],
    ids=["one pass", "streams"],
)
def test_the_sums_of_those_left_are_what_they_would_be(fields: Callable[[], dict[str, object]]) -> None:
    everything, _ = make_activations(**fields()).windows(CUTS)
    screen = Fixed()
    found, streams = make_activations(**fields()).windows(CUTS, screen=screen)
    assert equal(found, [one for one in everything if one.cut in LEFT])
    assert list(screen.seen) == CUTS
    assert len(streams.tokens) == len(streams.last) == 8, (
        "replays begin on all held-out tokens, and so does the dense loss"
    )


@torch.inference_mode()
@pytest.mark.parametrize("streams", [None, MemoryStore()], ids=["one pass", "streams"])
def test_the_screen_sees_two_halves_of_the_held_out_tokens(streams: MemoryStore | None) -> None:
    """The first to fit on, the second to judge on."""
    screen = Fixed()
    make_activations(store=streams).windows(CUTS, screen=screen)
    block_runner = make_activations().block_runner
    halves, _ = capture_windows(
        block_runner, CUTS, fit=HELD_OUT[::2], held_out=HELD_OUT[1::2], batch_size=1, advance=lambda _: None
    )
    for one in halves:
        seen = screen.seen[one.cut]
        assert seen.tokens == HELD_OUT.numel()
        for mine, theirs in ((seen.fit, one.fit), (seen.held_out, one.held_out)):
            torch.testing.assert_close(mine.gram, theirs.gram)
            torch.testing.assert_close(mine.cross, theirs.cross)


@torch.inference_mode()
def test_nothing_after_the_last_cut_that_is_left_is_run_on_the_fit_tokens() -> None:
    activations = make_activations()
    runs = [0] * BLOCKS
    for index, block in enumerate(activations.block_runner.blocks):
        block.register_forward_hook(lambda _m, _i, _o, index=index: runs.__setitem__(index, runs[index] + 1))
    fractions: list[float] = []
    activations.advance = fractions.append
    activations.windows(CUTS, screen=Fixed())
    assert runs == [3 + 8] * 4 + [8] * 2, "three batches to fit on, eight to judge on"
    assert activations.dense_block_runs == sum(runs)
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


@torch.inference_mode()
def test_the_ones_of_least_residual_stay() -> None:
    screening = Screening(ridge=None, most=2, diagonal=False)
    screen = Fixed()
    make_activations().windows(CUTS, screen=screen)
    residuals = {}
    for one in screen.seen.values():
        screening.add(one)
        residuals[one.cut] = min(
            one.held_out.residual(solve_delta(one.fit, ridge=ridge)) for ridge in (1e-2, 1e-1, 1.0, math.inf)
        )
    best = sorted(CUTS, key=lambda cut: residuals[cut])
    assert screening.remaining() == sorted(best[:2])
    assert {row.tokens for row in screening.table.values()} == {HELD_OUT.numel()}
    for cut in best[:2]:
        assert screening.table[cut].residual == pytest.approx(residuals[cut])
