"""`refit`: which blocks go, what it is worth, and that it is never worse than nothing."""

import itertools
from collections.abc import Collection
from dataclasses import replace

import pytest
import torch

from replaceme_core.engine.activations.tensor_store import activation_bytes
from replaceme_core.engine.methods.refit import judge_refit, least, with_all_tokens
from replaceme_core.engine.methods.refit_choice import (
    LEAST_TRIES,
    SetLosses,
    choose_runs,
    early_blocks,
    for_choice,
    keeps_all,
)
from replaceme_core.engine.methods.task import Task
from replaceme_core.engine.model.changes import Cut
from replaceme_core.engine.numerics.solve import solve_delta
from replaceme_core.errors import CalibrationTooSmall
from replaceme_core.request.calibration import SELF_GENERATED
from replaceme_core.request.defaults import LEAST_FACTOR, MOST_FACTOR
from tests.fixtures.models.tasks import carry_out, make_task, mean_loss, operate, sampled
from tests.fixtures.models.tiny import BLOCKS, BY_NAME, tiny_model, token_ids

FIT, HELD_OUT = sampled(tiny_model(), 16, 24, seed=1), sampled(tiny_model(), 8, 24, seed=2)
METHOD = {"name": "refit", "ridge": 1e-2, "ridge_later": 0.1}


def loss_after(method: dict[str, object], **fields: object) -> float:
    task, _ = make_task(tiny_model(), fit=FIT, held_out=HELD_OUT, method=method, **fields)
    return mean_loss(operate(tiny_model(), carry_out(task)), HELD_OUT)


@torch.inference_mode()
def test_the_first_block_is_the_one_that_costs_least_after_its_fit() -> None:
    task, _ = make_task(tiny_model(), remove=1, fit=FIT, held_out=HELD_OUT, method=METHOD)
    pruning = carry_out(task)
    losses = {}
    for block in range(1, BLOCKS):
        model = tiny_model()
        moments = task.activations.statistics(Cut(start=block, end=block)).fit
        delta = solve_delta(moments, ridge=1e-2)
        weight = model.model.layers[block - 1].mlp.down_proj.weight
        weight.add_((delta.T @ weight.double()).float())
        del model.model.layers[block]
        model.config.num_hidden_layers -= 1
        losses[block] = mean_loss(model, HELD_OUT)
    (best,) = pruning.removed
    assert best == min(losses, key=lambda block: losses[block])
    table = {one.start: one.held_out_loss for one in pruning.candidates}
    assert LEAST_TRIES <= len(table) < len(losses), "not all are tried on everything"
    assert table[best] == pytest.approx(losses[best], abs=1e-4), "the one that goes is judged on all held-out tokens"


@pytest.mark.parametrize(("asked", "lengths"), [({"selection": "window"}, [3]), ({"groups": 2}, [1, 2])])
def test_windows_on_request(asked: dict[str, object], lengths: list[int]) -> None:
    task, _ = make_task(tiny_model(), remove=3, fit=FIT, held_out=HELD_OUT, method={**METHOD, **asked})
    pruning = carry_out(task)
    chosen = [row.cut for row in pruning.candidates if row.chosen]
    assert sorted(len(cut.blocks) for cut in chosen) == lengths
    assert all(one.end < other.anchor for one, other in itertools.pairwise(chosen)), "a kept block is between them"
    assert [block for cut in chosen for block in cut.blocks] == list(pruning.removed)
    assert pruning.changes


def test_it_is_worth_more_than_maps_alone_and_these_more_than_nothing() -> None:
    refit = loss_after({**METHOD, "ridge": 0.1}, drop=[1, 4])
    maps = loss_after({"name": "least_squares", "ridge": 1e-2}, drop=[1, 4])
    plain = loss_after({"name": "drop"}, drop=[1, 4])
    assert refit < maps < plain


def test_text_that_says_nothing_about_the_model_changes_nothing_for_the_worse() -> None:
    noise = token_ids(2, 24, seed=5)  # 48 tokens for 40 x 16 unknowns, and next to no ridge
    method = {"name": "refit", "ridge": 1e-7, "ridge_later": 1e-7}
    for drop in itertools.combinations(range(1, BLOCKS), 2):
        task, recorder = make_task(tiny_model(), fit=noise, held_out=HELD_OUT, method=method, drop=list(drop))
        pruning = carry_out(task)
        plain = loss_after({"name": "drop"}, drop=list(drop))
        assert mean_loss(operate(tiny_model(), pruning), HELD_OUT) <= plain + 1e-4
        if recorder.value("unscaled_held_out_loss") > recorder.value("plain_held_out_loss"):
            assert not pruning.changes
            return
    raise AssertionError("no fit was worse than nothing: the test shows nothing")


@torch.inference_mode()
@pytest.mark.parametrize(("name", "takes"), [("llama", True), ("gemma2", True), ("opt-plain", False)])
def test_a_model_that_is_too_sure_is_made_less_so(name: str, takes: bool) -> None:
    """Where the final norm has a weight that takes the factor."""
    model = tiny_model(BY_NAME[name])
    held_out = torch.cat([sampled(model, 8, 24, seed=2), token_ids(4, 24, seed=3)])  # nobody could foresee the last
    task, recorder = make_task(model, fit=sampled(model, 16, 24), held_out=held_out, method=METHOD, drop=[2, 3])
    found = judge_refit(task, [2, 3], []).scaled()
    loss, unscaled = recorder.value("held_out_loss"), recorder.value("unscaled_held_out_loss")
    assert LEAST_FACTOR <= found.final_scale < 1 if takes else found.final_scale == 1
    assert loss < unscaled if takes else loss == unscaled
    operated = operate(tiny_model(BY_NAME[name]), found)
    assert mean_loss(operated, held_out) == pytest.approx(loss, rel=1e-4), "it is worth what was promised"


def test_no_point_is_taken_that_was_not_seen_to_be_better() -> None:
    assert least(lambda scale: -abs(scale - 0.95), known=-0.05)[0] in (0.9, 1.0), "not a parabola: the best point seen"
    assert least(lambda scale: (scale - 3) ** 2, known=4.0)[0] == MOST_FACTOR
    assert least(lambda scale: (scale - 0.2) ** 2, known=0.64)[0] == LEAST_FACTOR
    assert least(lambda _: 1.0, known=1.0)[0] == 1.0


@torch.inference_mode()
def test_the_factor_of_the_final_norm_is_that_of_text_and_not_of_own_text() -> None:
    scales = []
    held_out = torch.cat([HELD_OUT[:4], token_ids(4, 24, seed=3)])  # nobody could foresee the last ones
    for other in ("text of somebody else", SELF_GENERATED):
        task, _ = make_task(tiny_model(), fit=FIT, held_out=held_out, method=METHOD, drop=[2, 3])
        sources = torch.tensor([0] * 4 + [1] * 4)
        marked = replace(task.activations, held_out_sources=sources, source_names=("text", other))
        scales.append(judge_refit(replace(task, activations=marked), [2, 3], []).scaled().final_scale)
    assert scales[1] > scales[0] + 0.02


@torch.inference_mode()
def test_held_out_tokens_judge_and_then_join_the_fit() -> None:
    judged, final = [], []
    for seed in (2, 7):
        held_out = sampled(tiny_model(), 8, 24, seed=seed)
        task, _ = make_task(tiny_model(), fit=FIT, held_out=held_out, method=METHOD, drop=[2, 3])
        judged.append(judge_refit(task, [2, 3], []).scaled())
        final.append(with_all_tokens(task, judged[-1]))
        assert final[-1].held_out_losses == judged[-1].held_out_losses, "the honest ones"
    for pair, alike in ((judged, True), (final, False)):
        for one, other in zip(pair[0].changes, pair[1].changes, strict=True):
            assert torch.equal(one.change, other.change) == alike
    unseen = sampled(tiny_model(), 32, 24, seed=11)
    losses = [mean_loss(operate(tiny_model(), pruning), unseen) for pruning in (judged[0], final[0])]
    assert losses[1] < losses[0], "half as many tokens again"


def choosing(remove: int = 2, *, blocks: int = BLOCKS) -> Task:
    model = tiny_model(num_hidden_layers=blocks)
    return make_task(model, remove=remove, fit=FIT, held_out=HELD_OUT, method={"name": "refit"})[0]


@torch.inference_mode()
@pytest.mark.parametrize(("blocks", "remove", "steps"), [(6, 1, 1), (6, 3, 2), (9, 8, 2), (2, 1, 1)])
def test_as_many_blocks_go_as_are_asked_for(blocks: int, remove: int, steps: int) -> None:
    """Also where what is left in one piece is shorter than a run."""
    found = choose_runs(choosing(remove, blocks=blocks))[0]
    assert found.removed == sorted(set(found.removed))
    assert len(found.removed) == remove
    assert set(found.removed) <= set(early_blocks(blocks, remove=remove))
    assert {*range(1, steps + 1)} <= {row.step for row in found.candidates} or steps == 1
    chosen = [row for row in found.candidates if row.chosen]
    assert sorted({block for row in chosen for block in row.cut.blocks}) == found.removed
    assert len(found.losses) == 8


@torch.inference_mode()
@pytest.mark.parametrize(
    ("costs", "several", "one"),
    [
        # 9 costs least by itself and would go first were blocks removed one at a time; its neighbours cost much
        ({9: 0.001, **dict.fromkeys(range(2, 8), 0.1)}, [2, 3, 4, 5, 6, 7], [2, 3, 4, 5, 6, 7]),
        # the last ones are cheaper still; blocks that no others follow stay
        ({**dict.fromkeys(range(4, 10), 0.01), **dict.fromkeys(range(12, 18), 0.001)}, None, [4, 5, 6, 7, 8, 9]),
        # three and three are where the choice begins
        (dict.fromkeys((2, 3, 4, 5, 9, 10), 0.01), [2, 3, 4, 5, 9, 10], None),
    ],
)
def test_runs_go_that_cost_least_as_a_whole(
    monkeypatch: pytest.MonkeyPatch, costs: dict[int, float], several: list[int] | None, one: list[int] | None
) -> None:
    """The loss grows by the `costs` of the removed blocks, as parts of the dense model's."""

    def losses(of: SetLosses, removed: Collection[int], numbers: Collection[int], _: int | None) -> list[float]:
        dense = dict(zip(of._numbers, of.judge.dense, strict=True))
        return [dense[number] * (1 + sum(costs.get(block, 1.0) for block in removed)) for number in numbers]

    monkeypatch.setattr(SetLosses, "_losses", losses)
    task = choosing(6, blocks=18)
    for found, expected in zip(choose_runs(task), (several, one), strict=True):
        assert expected is None or found.removed == expected
        chosen = [row for row in found.candidates if row.chosen]
        assert sorted({block for row in chosen for block in row.cut.blocks}) == found.removed
        assert chosen[-1].held_out_loss == pytest.approx(SetLosses(task).judge.mean(found.losses))
        if found.removed == [2, 3, 4, 5, 9, 10]:
            assert [(row.step, row.start, row.end) for row in chosen] == [(3, 2, 5), (3, 9, 10)], "an end was moved"


@torch.inference_mode()
def test_it_looks_at_parts_of_some_sequences_and_gives_the_losses_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the beginning of each sequence, and at as many of a long source as of a short one, or four."""
    monkeypatch.setattr("replaceme_core.engine.methods.refit_choice.RUN_POSITIONS", 12)
    sources = torch.tensor([0] * 6 + [1] * 2)
    task = choosing()
    activations = replace(task.activations, held_out_sources=sources, source_names=("long", "short"), batch_size=1)
    task, looked, loss = replace(task, activations=activations), set[tuple[int, int]](), SetLosses.loss

    def noted(losses: SetLosses, removed: Collection[int], batch: int) -> float:
        looked.update(zip(losses.judge.sources, losses.judge.predictions, strict=True))
        assert sorted(losses.judge.sources) == [0] * 4 + [1] * 2
        return loss(losses, removed, batch)

    monkeypatch.setattr(SetLosses, "loss", noted)
    found = choose_runs(task)[0]
    assert looked == {(0, 11), (1, 11)}
    assert all(row.estimated for row in found.candidates)
    assert len(found.losses) == 8
    assert found.losses == pytest.approx(SetLosses(task).whole(found.removed))


def room_for(monkeypatch: pytest.MonkeyPatch, task: Task, *, sequences: int) -> None:
    size = activation_bytes(task.block_runner, tokens=sequences * FIT.shape[1])
    monkeypatch.setattr("replaceme_core.engine.methods.refit_choice.CHOICE_STREAM_BYTES", size)


def test_as_many_sequences_as_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    task = choosing()
    assert for_choice(task) is task
    room_for(monkeypatch, task, sequences=24)
    assert for_choice(task) is task
    room_for(monkeypatch, task, sequences=12)
    part = for_choice(task)
    assert torch.equal(part.tokens.fit, FIT[:8])
    assert torch.equal(part.tokens.held_out, HELD_OUT[:4])
    short = {"fit": FIT[:, :8], "held_out": HELD_OUT[:, :8]}  # one sequence is less than the width of 16
    task, _ = make_task(tiny_model(), remove=2, method={"name": "refit"}, **short)
    room_for(monkeypatch, task, sequences=0)
    with pytest.raises(CalibrationTooSmall):
        for_choice(task)


def test_refit_chooses_on_the_part_and_fits_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    task, recorder = make_task(tiny_model(), fit=FIT, held_out=HELD_OUT, method=METHOD)
    room_for(monkeypatch, task, sequences=12)
    found = carry_out(task)
    assert recorder.value("choice_tokens") == 12 * 24
    assert not task.activations.complete, "the streams of all tokens are nowhere"
    named, _ = make_task(tiny_model(), fit=FIT, held_out=HELD_OUT, method=METHOD, drop=list(found.removed))
    for one, other in zip(found.changes, carry_out(named).changes, strict=True):
        assert torch.equal(one.change, other.change)
    assert task.activations.dense_block_runs > named.activations.dense_block_runs >= BLOCKS, "of the part as well"


def test_auto_keeps_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    task, recorder = make_task(tiny_model(), fit=FIT, held_out=HELD_OUT, method={"name": "auto"})
    room_for(monkeypatch, task, sequences=12)
    assert not keeps_all(task)
    found = carry_out(task)
    assert not task.activations.complete
    losses = recorder.values("held_out_loss")
    assert len(losses) in (3, 5)
    assert mean_loss(operate(tiny_model(), found), HELD_OUT) <= min(losses[0], losses[-1]) + 1e-3
