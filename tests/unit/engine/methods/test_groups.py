"""Several cuts for one ratio: which sets there are, which is best, and that each map is fitted behind the others."""

from itertools import combinations, pairwise

import pytest
import torch

from replaceme_core.engine.activations.cut_sums import capture_next_cut, capture_windows
from replaceme_core.engine.methods.task import Pruning
from replaceme_core.engine.methods.windows import best_sets, fit_cut, lengths
from replaceme_core.engine.model.changes import Cut, windows
from tests.fixtures.models.tasks import carry_out, make_task, mean_loss, operate, sampled
from tests.fixtures.models.tiny import tiny_model

BLOCKS = 8


@pytest.fixture(scope="module")
def texts() -> tuple[torch.Tensor, torch.Tensor]:
    model = tiny_model(num_hidden_layers=BLOCKS)
    return sampled(model, 24, 24, seed=1), sampled(model, 16, 24, seed=2)


def every_set(cuts: list[Cut], *, groups: int, remove: int) -> list[tuple[Cut, ...]]:
    """By trying all."""
    return [
        several
        for several in combinations(sorted(cuts), groups)
        if sum(len(cut.blocks) for cut in several) == remove
        and all(before.end < after.anchor for before, after in pairwise(several))
    ]


@pytest.mark.parametrize(("groups", "remove"), [(2, 5), (3, 5), (3, 4), (2, 2)])
def test_the_best_sets_are_those_of_least_summed_residual(groups: int, remove: int) -> None:
    cuts = [cut for length in lengths(remove=remove, groups=groups) for cut in windows(10, length)]
    values = torch.rand(len(cuts), generator=torch.Generator().manual_seed(groups)).tolist()
    residuals = dict(zip(cuts, values, strict=True))
    expected = sorted(
        every_set(cuts, groups=groups, remove=remove), key=lambda several: sum(residuals[cut] for cut in several)
    )
    assert best_sets(residuals, groups=groups, remove=remove, most=4) == expected[:4]


@pytest.mark.parametrize("groups", [1, 2, 3, 5, 8])
def test_shares_are_even_and_add_up(groups: int) -> None:
    shares = lengths(remove=8, groups=groups)
    assert {8 // groups, -(-8 // groups)} <= set(shares)
    assert all(1 <= share <= 8 - groups + 1 for share in shares)


@torch.inference_mode()
def test_one_pass_serves_cuts_of_several_lengths(texts: tuple[torch.Tensor, torch.Tensor]) -> None:
    task, _ = make_task(tiny_model(num_hidden_layers=BLOCKS), fit=texts[0], held_out=texts[1])
    cuts = [*windows(BLOCKS, 3), *windows(BLOCKS, 2)]
    options = {"fit": texts[0], "held_out": texts[1], "batch_size": 4, "advance": lambda _: None}
    statistics, _ = capture_windows(task.block_runner, cuts, **options)  # type: ignore[arg-type]
    assert [one.cut for one in statistics] == cuts
    for one in statistics:
        alone = capture_next_cut(task.block_runner, one.cut, done=[], **options)  # type: ignore[arg-type]
        torch.testing.assert_close(one.fit.gram, alone.fit.gram)
        torch.testing.assert_close(one.held_out.cross, alone.held_out.cross)
        assert one.angle.value == pytest.approx(alone.angle.value)


@pytest.mark.parametrize("method", ["least_squares", "cosine"])
@pytest.mark.parametrize("keep", [False, True])
def test_groups_are_chosen_and_fitted_in_order(
    method: str, keep: bool, texts: tuple[torch.Tensor, torch.Tensor]
) -> None:
    model = tiny_model(num_hidden_layers=BLOCKS)
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
        tiny_model(num_hidden_layers=BLOCKS), remove=4, fit=texts[0], held_out=texts[1], method={"groups": 2}
    )
    pruning = carry_out(task)
    losses = {row.group: row.held_out_loss for row in pruning.candidates if row.group is not None}
    chosen = {row.cut for row in pruning.candidates if row.chosen}
    winners = [n for n in losses if {row.cut for row in pruning.candidates if row.group == n} == chosen]
    assert len(winners) == 1
    assert losses[winners[0]] in sorted(losses.values())[:2]
    loss = mean_loss(operate(tiny_model(num_hidden_layers=BLOCKS), pruning), texts[1])
    plain = mean_loss(operate(tiny_model(num_hidden_layers=BLOCKS), Pruning(removed=pruning.removed)), texts[1])
    assert loss <= plain * 1.0001
