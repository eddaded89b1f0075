"""Windows and sets of cuts: screened by residual, chosen by held-out loss."""

import math
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from itertools import combinations, pairwise

import pytest
import torch

from replaceme_core.engine.activations.cut_sums import CutStatistics
from replaceme_core.engine.activations.tensor_store import MemoryStore
from replaceme_core.engine.methods.task import Pruning
from replaceme_core.engine.methods.windows import Screening, best_sets, fit_cut, lengths
from replaceme_core.engine.model.changes import Cut, windows
from replaceme_core.engine.numerics.solve import solve_delta
from tests.fixtures.models.activations import CUTS, HELD_OUT, make_activations
from tests.fixtures.models.tasks import carry_out, make_task, mean_loss, operate, sampled
from tests.fixtures.models.tiny import tiny_model

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
    [lambda: {}, lambda: {"store": MemoryStore()}],
    ids=["one pass", "streams"],
)
def test_the_sums_of_those_left_are_what_they_would_be(fields: Callable[[], dict[str, object]]) -> None:
    everything = make_activations(**fields()).windows(CUTS)
    screen = Fixed()
    activations = make_activations(**fields())
    found = activations.windows(CUTS, screen=screen)
    assert equal(found, [one for one in everything if one.cut in LEFT])
    assert list(screen.seen) == CUTS
    runs = activations.dense_block_runs
    assert len(activations.dense_losses()) == 8
    assert activations.dense_block_runs == runs, "the streams after the last block are there"


@torch.inference_mode()
@pytest.mark.parametrize("streams", [None, MemoryStore()], ids=["one pass", "streams"])
def test_the_screen_sees_two_halves_of_the_held_out_tokens(streams: MemoryStore | None) -> None:
    """The first to fit on, the second to judge on."""
    screen = Fixed()
    make_activations(store=streams).windows(CUTS, screen=screen)
    halves = replace(make_activations(), fit=HELD_OUT[::2], held_out=HELD_OUT[1::2], batch_size=1).windows(CUTS)
    for one in halves:
        seen = screen.seen[one.cut]
        assert seen.tokens == HELD_OUT.numel()
        for mine, theirs in ((seen.fit, one.fit), (seen.held_out, one.held_out)):
            torch.testing.assert_close(mine.gram, theirs.gram)
            torch.testing.assert_close(mine.cross, theirs.cross)


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


DEPTH = 8


@pytest.fixture(scope="module")
def texts() -> tuple[torch.Tensor, torch.Tensor]:
    model = tiny_model(num_hidden_layers=DEPTH)
    return sampled(model, 24, 24, seed=1), sampled(model, 16, 24, seed=2)


def every_set(cuts: list[Cut], *, groups: int, remove: int) -> list[tuple[Cut, ...]]:
    """By trying all."""
    return [
        several
        for several in combinations(sorted(cuts), groups)
        if sum(len(cut.blocks) for cut in several) == remove
        and all(before.end < after.anchor for before, after in pairwise(several))
    ]


@pytest.mark.parametrize(("groups", "remove"), [(2, 5), (3, 4)])
def test_the_best_sets_are_those_of_least_summed_residual(groups: int, remove: int) -> None:
    cuts = [cut for length in lengths(remove=remove, groups=groups) for cut in windows(10, length)]
    values = torch.rand(len(cuts), generator=torch.Generator().manual_seed(groups)).tolist()
    residuals = dict(zip(cuts, values, strict=True))
    expected = sorted(
        every_set(cuts, groups=groups, remove=remove), key=lambda several: sum(residuals[cut] for cut in several)
    )
    assert best_sets(residuals, groups=groups, remove=remove, most=4) == expected[:4]


@pytest.mark.parametrize(("method", "keep"), [("least_squares", False), ("cosine", True)])
def test_groups_are_chosen_and_fitted_in_order(
    method: str, keep: bool, texts: tuple[torch.Tensor, torch.Tensor]
) -> None:
    model = tiny_model(num_hidden_layers=DEPTH)
    asked = {"name": method, "groups": 2, "ridge": 0.1}
    task, recorder = make_task(model, remove=4, fit=texts[0], held_out=texts[1], keep=keep, method=asked)
    pruning = carry_out(task)
    first, second = pruning.folds
    assert first.cut.end < second.cut.anchor
    assert list(pruning.removed) == sorted([*first.cut.blocks, *second.cut.blocks])
    assert len(pruning.removed) == 4
    if method == "least_squares":
        with torch.inference_mode():
            statistics = task.activations.statistics(second.cut, done=[first])
            torch.testing.assert_close(second.delta, fit_cut(statistics, ridge=0.1).from_all_tokens.delta)
    tried = [row for row in pruning.candidates if row.group is not None]
    assert {row.group for row in tried} == set(range(1, len(tried) // 2 + 1))
    assert all(row.held_out_loss is not None for row in tried)
    chosen = [row for row in pruning.candidates if row.chosen]
    assert [row.cut for row in chosen] == [first.cut, second.cut]
    assert recorder.value("dense_held_out_loss") > 0


def test_the_set_of_least_loss_wins_and_is_never_worse_than_plain_removal(
    texts: tuple[torch.Tensor, torch.Tensor],
) -> None:
    task, _ = make_task(
        tiny_model(num_hidden_layers=DEPTH), remove=4, fit=texts[0], held_out=texts[1], method={"groups": 2}
    )
    pruning = carry_out(task)
    losses = {row.group: row.held_out_loss for row in pruning.candidates if row.group is not None}
    chosen = {row.cut for row in pruning.candidates if row.chosen}
    winners = [n for n in losses if {row.cut for row in pruning.candidates if row.group == n} == chosen]
    assert len(winners) == 1
    assert losses[winners[0]] in sorted(losses.values())[:2]
    loss = mean_loss(operate(tiny_model(num_hidden_layers=DEPTH), pruning), texts[1])
    plain = mean_loss(operate(tiny_model(num_hidden_layers=DEPTH), Pruning(removed=pruning.removed)), texts[1])
    assert loss <= plain * 1.0001
