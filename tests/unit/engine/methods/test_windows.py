"""Sets of cuts: screened by residual, chosen by held-out loss."""

from itertools import combinations, pairwise

import pytest
import torch

from replaceme_core.engine.methods.task import Pruning
from replaceme_core.engine.methods.windows import best_sets, fit_cut, lengths
from replaceme_core.engine.model.changes import Cut, windows
from tests.fixtures.models.tasks import carry_out, make_task, mean_loss, operate, sampled
from tests.fixtures.models.tiny import tiny_model

DEPTH = 8
FIT, HELD_OUT = (sampled(tiny_model(num_hidden_layers=DEPTH), count, 24, seed=count) for count in (24, 16))


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
    cuts = [cut for length in lengths(remove=remove, groups=groups, slack=1) for cut in windows(10, length)]
    values = torch.rand(len(cuts), generator=torch.Generator().manual_seed(groups)).tolist()
    residuals = dict(zip(cuts, values, strict=True))
    expected = sorted(
        every_set(cuts, groups=groups, remove=remove), key=lambda several: sum(residuals[cut] for cut in several)
    )
    assert best_sets(residuals, groups=groups, remove=remove, most=4) == expected[:4]


@pytest.mark.parametrize(("method", "keep"), [("least_squares", False), ("cosine", True)])
def test_groups_are_chosen_and_fitted_in_order(method: str, keep: bool) -> None:
    model = tiny_model(num_hidden_layers=DEPTH)
    asked = {"name": method, "groups": 2, "ridge": 0.1}
    task, recorder = make_task(model, remove=4, fit=FIT, held_out=HELD_OUT, keep=keep, method=asked)
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


def test_the_set_of_least_loss_wins_and_is_never_worse_than_plain_removal() -> None:
    task, _ = make_task(tiny_model(num_hidden_layers=DEPTH), remove=4, fit=FIT, held_out=HELD_OUT, method={"groups": 2})
    pruning = carry_out(task)
    losses = {row.group: row.held_out_loss for row in pruning.candidates if row.group is not None}
    chosen = {row.cut for row in pruning.candidates if row.chosen}
    winners = [n for n in losses if {row.cut for row in pruning.candidates if row.group == n} == chosen]
    assert len(winners) == 1
    assert losses[winners[0]] == min(losses.values())
    loss = mean_loss(operate(tiny_model(num_hidden_layers=DEPTH), pruning), HELD_OUT)
    plain = mean_loss(operate(tiny_model(num_hidden_layers=DEPTH), Pruning(removed=pruning.removed)), HELD_OUT)
    assert loss <= plain * 1.0001
