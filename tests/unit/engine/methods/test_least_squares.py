"""A map is accepted if it beats plain removal of the same blocks on held-out tokens."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from replaceme_core.engine.activations.capture import CutStatistics
from replaceme_core.engine.methods.candidates import first_lap
from replaceme_core.engine.methods.least_squares import CutFit, fit_cut, fit_named
from replaceme_core.engine.methods.task import Pruning, Task
from replaceme_core.engine.model.changes import windows
from replaceme_core.errors import CalibrationTooSmall, InvalidInput, NumericalFailure
from tests.fixtures.models.activations import dense_pass
from tests.fixtures.models.tasks import OWN_TEXT, carry_out, make_task, mean_loss, operate, sampled
from tests.fixtures.models.tiny import BLOCKS, BY_NAME, WIDTH, tiny_model, token_ids

OWN_FIT, OWN_HELD_OUT = OWN_TEXT[:24], OWN_TEXT[24:]


def test_the_chosen_window_is_accepted_as_well() -> None:
    fit, held_out = OWN_FIT, OWN_HELD_OUT
    pruning = carry_out(make_task(tiny_model(), fit=fit, held_out=held_out)[0])
    (row,) = (one for one in pruning.candidates if one.chosen)
    plain = mean_loss(operate(tiny_model(), Pruning(removed=pruning.removed)), held_out)
    assert row.plain_loss == pytest.approx(plain, rel=1e-4)
    assert row.held_out_loss is not None and row.held_out_loss <= row.plain_loss
    assert bool(pruning.folds[0].delta.any()) == (row.ridge is not None)


@pytest.mark.parametrize(("factor", "is_taken"), [(1.0, True), (-1.0, False)])
def test_maps_that_hurt_are_dropped(factor: float, is_taken: bool) -> None:
    fit, held_out = OWN_FIT, OWN_HELD_OUT
    task, _ = make_task(tiny_model(), fit=fit, held_out=held_out, drop=[1, 3, 4])
    fitted = list[CutFit]()

    def wrong(statistics: CutStatistics) -> CutFit:
        found = fit_cut(statistics, ridge=0.1)
        maps = (replace(one, delta=one.delta * factor) for one in (found.from_all_tokens, found.from_fit_tokens))
        fitted.append(replace(found, **dict(zip(("from_all_tokens", "from_fit_tokens"), maps, strict=True))))
        return fitted[-1]

    with torch.inference_mode():
        pruning = fit_named(task, [1, 3, 4], wrong)
    assert [row.ridge for row in pruning.candidates] == [0.1 if is_taken else None] * 2
    for fold, one in zip(pruning.folds, fitted, strict=True):
        assert torch.equal(fold.delta, one.from_all_tokens.delta * is_taken)


def test_a_ridge_that_was_asked_for_is_taken_as_it_is() -> None:
    """On text that says nothing about the model, where a map of one's own choice would be dropped."""
    fit, held_out = token_ids(8, 24, seed=3), token_ids(4, 24, seed=4)
    for fields in ({"drop": [2, 3]}, {}):
        task, _ = make_task(tiny_model(), fit=fit, held_out=held_out, method={"ridge": 0.01}, **fields)
        pruning = carry_out(task)
        (row,) = (one for one in pruning.candidates if one.chosen)
        assert row.ridge == 0.01
        assert None not in (row.held_out_loss, row.plain_loss)
        assert pruning.folds[0].delta.shape == (WIDTH, WIDTH)
        assert pruning.folds[0].delta.any()


@pytest.mark.parametrize("method", ["least_squares", "cosine"])
def test_a_diagonal_map_may_be_asked_for(method: str) -> None:
    fit, held_out = OWN_FIT, OWN_HELD_OUT
    asked = {"name": method, "structure": "diagonal", "ridge": 0.1}
    for fields in ({"drop": [2, 3]}, {}):
        task, _ = make_task(tiny_model(), fit=fit, held_out=held_out, method=asked, **fields)
        (fold,) = carry_out(task).folds
        assert fold.delta.any()
        assert torch.equal(fold.delta, fold.delta.diagonal().diag())


def test_a_full_map_does_not_pass_a_norm() -> None:
    fit, held_out = token_ids(8, 24), token_ids(4, 24)
    task, _ = make_task(tiny_model(BY_NAME["gemma2"]), fit=fit, held_out=held_out, method={"structure": "full"})
    with pytest.raises(InvalidInput, match="only a diagonal map") as caught:
        carry_out(task)
    assert caught.value.field == "method.structure"


def test_a_full_map_needs_a_token_for_each_channel() -> None:
    def task(tokens: int, **method: object) -> Task:
        return make_task(tiny_model(), fit=token_ids(1, tokens), held_out=token_ids(1, tokens), method=method)[0]

    task(WIDTH).require_rank()
    task(WIDTH - 1, structure="diagonal").require_rank()
    with pytest.raises(CalibrationTooSmall, match=r"15 calibration tokens are left for the fit.*needs at least 16"):
        task(WIDTH - 1).require_rank()


def test_every_window_has_a_row_from_a_part_and_the_chosen_one_a_map_from_all() -> None:
    fit, held_out = OWN_FIT, OWN_HELD_OUT
    task, _ = make_task(tiny_model(), fit=fit, held_out=held_out, method={"replays": 2})
    table = carry_out(task).candidates
    assert [row.cut for row in table] == windows(BLOCKS, 2)
    part = sum(task.activations.batches[number].tokens.numel() for number in first_lap(task))
    for row in table:
        assert row.tokens == (fit.numel() + held_out.numel() if row.chosen else part + held_out.numel() // 2)
        assert row.distance is not None
    replayed = [row for row in table if row.held_out_loss is not None]
    assert len(replayed) == 2
    assert sum(row.chosen for row in replayed) == 1


DEEP = 8


@cache
def deep_text() -> dict[str, torch.Tensor]:
    """Fit and held-out tokens that the deeper model itself has written."""
    fit, held_out = sampled(tiny_model(num_hidden_layers=DEEP), 40, 24).split([24, 16])
    return {"fit": fit, "held_out": held_out}


@pytest.mark.parametrize(("method", "keep"), [("least_squares", False), ("cosine", True)])
def test_groups_are_chosen_and_fitted_in_order(method: str, keep: bool) -> None:
    model = tiny_model(num_hidden_layers=DEEP)
    asked = {"name": method, "groups": 2, "ridge": 0.1}
    task, recorder = make_task(model, remove=4, keep=keep, method=asked, **deep_text())
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
    task, _ = make_task(tiny_model(num_hidden_layers=DEEP), remove=4, method={"groups": 2}, **deep_text())
    pruning = carry_out(task)
    losses = {row.group: row.held_out_loss for row in pruning.candidates if row.group is not None}
    chosen = {row.cut for row in pruning.candidates if row.chosen}
    winners = [n for n in losses if {row.cut for row in pruning.candidates if row.group == n} == chosen]
    assert len(winners) == 1
    assert losses[winners[0]] == min(losses.values())
    loss, plain = (
        mean_loss(operate(tiny_model(num_hidden_layers=DEEP), one), deep_text()["held_out"])
        for one in (pruning, Pruning(removed=pruning.removed))
    )
    assert loss <= plain * 1.0001


FIT, HELD_OUT = token_ids(6, 24, seed=1), token_ids(4, 24, seed=2)
METHOD = {"as_published": True}


def test_the_last_token_chooses() -> None:
    streams, _ = dense_pass(tiny_model(), torch.cat([FIT, HELD_OUT]))
    distances = {}
    for start in range(1, BLOCKS - 1):
        ends = streams[start][:, -1], streams[start + 2][:, -1]
        distances[start] = float((torch.nn.functional.cosine_similarity(*ends).arccos() / torch.pi).mean())
    pruning = carry_out(make_task(tiny_model(), fit=FIT, held_out=HELD_OUT, method=METHOD)[0])
    for row in pruning.candidates:
        assert row.distance == pytest.approx(distances[row.cut.start], rel=1e-4)
    assert pruning.removed[0] == min(distances, key=lambda start: distances[start])


@pytest.mark.parametrize("ridge", [None, 50.0])
def test_the_map_is_that_of_the_reference_on_the_dense_model(ridge: float | None) -> None:
    streams, writes = dense_pass(tiny_model(), torch.cat([FIT, HELD_OUT]))
    method = METHOD if ridge is None else {**METHOD, "ridge": ridge}
    pruning = carry_out(make_task(tiny_model(), fit=FIT, held_out=HELD_OUT, drop=[1, 3, 4], method=method)[0])
    for fold, (anchor, end) in zip(pruning.folds, [(0, 1), (2, 4)], strict=True):
        a1 = writes[anchor].reshape(-1, WIDTH).double()
        a2 = (streams[end + 1] - streams[anchor + 1]).reshape(-1, WIDTH).double() + a1
        system = a1.T @ a1 + (ridge or 0.0) * torch.eye(WIDTH, dtype=torch.float64)
        expected = torch.linalg.inv(system) @ a1.T @ a2
        torch.testing.assert_close(fold.delta + torch.eye(WIDTH, dtype=torch.float64), expected, rtol=1e-3, atol=1e-3)


def test_a_singular_system_is_an_error_and_no_map() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3] = 0
    with pytest.raises(NumericalFailure, match="give a ridge"):
        carry_out(make_task(model, fit=FIT, held_out=HELD_OUT, drop=[2], method=METHOD)[0])
