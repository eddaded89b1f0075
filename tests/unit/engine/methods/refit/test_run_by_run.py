"""Runs of blocks removed one after another, early ones only."""

from collections.abc import Collection
from dataclasses import replace

import pytest
import torch

from replaceme_core.engine.methods.refit_choice import BlockChoice, RunByRun, SetLosses, divisions, early_blocks
from replaceme_core.engine.methods.task import Task
from replaceme_core.engine.model.changes import runs
from tests.fixtures.models.tasks import make_task, sampled
from tests.fixtures.models.tiny import BLOCKS, tiny_model

FIT, HELD_OUT = sampled(tiny_model(), 16, 24, seed=1), sampled(tiny_model(), 8, 24, seed=2)
REMOVED = 2


def with_activations(remove: int = REMOVED, *, blocks: int = BLOCKS) -> Task:
    model = tiny_model(num_hidden_layers=blocks)
    task, _ = make_task(model, remove=remove, fit=FIT, held_out=HELD_OUT, method={"name": "refit"})
    task.activations.capture()
    return task


def choose_several(task: Task) -> BlockChoice:
    """Of two ways to divide the blocks the one in several runs."""
    return RunByRun(task=task).choose(divisions(task.remove)[0], advance=lambda _: None)


def costs(monkeypatch: pytest.MonkeyPatch, cost: "dict[int, float]") -> None:
    """The loss grows by these parts of the dense model's for each removed block."""

    def losses(of: SetLosses, removed: Collection[int], numbers: Collection[int], _: int | None) -> list[float]:
        dense = dict(zip(of._numbers, of.judge.dense, strict=True))
        return [dense[number] * (1 + sum(cost.get(block, 1.0) for block in removed)) for number in numbers]

    monkeypatch.setattr(SetLosses, "_losses", losses)


@pytest.mark.parametrize("blocks", [2, 3, 4, 12, 30])
def test_a_third_of_the_kept_blocks_follows_and_enough_may_go(blocks: int) -> None:
    for remove in range(1, blocks):
        found = early_blocks(blocks, remove=remove)
        assert 1 <= found.start <= max(1, blocks // 10)
        assert len(found) >= remove
        assert blocks - found.stop == (blocks - remove) // 3


@pytest.mark.parametrize("remove", range(1, 40))
def test_runs_have_about_one_length_and_are_few(remove: int) -> None:
    lengths, *others = divisions(remove)
    assert others == ([[remove]] if remove > 1 else []), "and one run"
    assert sum(lengths) == remove
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] - lengths[-1] <= 1
    assert len(lengths) <= max(2, remove // 4)


@torch.inference_mode()
@pytest.mark.parametrize(("blocks", "remove"), [(6, 1), (6, 2), (6, 3), (6, 4), (6, 5), (8, 7), (9, 8), (2, 1)])
def test_as_many_blocks_go_as_are_asked_for(blocks: int, remove: int) -> None:
    """Also where what is left in one piece is shorter than a run."""
    found = choose_several(with_activations(remove, blocks=blocks))
    assert found.removed == sorted(set(found.removed))
    assert len(found.removed) == remove
    assert set(found.removed) <= set(early_blocks(blocks, remove=remove))
    count = len(divisions(remove)[0])
    steps = [row.step for row in found.candidates]
    assert {*range(1, count + 1)} <= {*steps} if count > 1 else {*steps} == {None}
    chosen = [row for row in found.candidates if row.chosen]
    assert sorted({block for row in chosen for block in row.cut.blocks}) == found.removed
    assert len(found.losses) == 8


@torch.inference_mode()
def test_the_last_blocks_stay_even_where_they_cost_least(monkeypatch: pytest.MonkeyPatch) -> None:
    costs(monkeypatch, {block: 0.01 / block for block in range(1, BLOCKS)})
    found = choose_several(with_activations())
    allowed = early_blocks(BLOCKS, remove=REMOVED)
    assert found.removed == [allowed.stop - 2, allowed.stop - 1]
    assert {row.end for row in found.candidates} <= set(allowed)


@torch.inference_mode()
def test_a_cheap_block_among_costly_ones_does_not_lead_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Removed one at a time, 9 would go first, and then its neighbours."""
    costs(monkeypatch, {9: 0.001, **dict.fromkeys((2, 3, 4, 5, 6, 7), 0.1)})
    found = choose_several(with_activations(6, blocks=18))
    assert found.removed == [2, 3, 4, 5, 6, 7]


@torch.inference_mode()
def test_few_runs_of_neighbours_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    costs(monkeypatch, dict.fromkeys(range(1, 18, 2), 0.01))
    assert len(runs(choose_several(with_activations(6, blocks=18)).removed)) <= 2


@torch.inference_mode()
def test_one_run_is_the_one_that_costs_least(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last ones are cheaper still; blocks that no others follow stay."""
    costs(monkeypatch, {**dict.fromkeys((4, 5, 6, 7, 8, 9), 0.01), **dict.fromkeys(range(12, 18), 0.001)})
    by_run = RunByRun(task=with_activations(6, blocks=18))
    done = list[float]()
    found = by_run.choose([6], advance=done.append)
    assert found.removed == [4, 5, 6, 7, 8, 9]
    assert {row.step for row in found.candidates} == {None}, "one step is no order"
    assert done == sorted(done)
    assert done[-1] == 1.0


@torch.inference_mode()
def test_runs_of_unequal_length_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three and three are where the choice begins: 2-5 and 9, 10 cost least."""
    costs(monkeypatch, dict.fromkeys((2, 3, 4, 5, 9, 10), 0.01))
    found = choose_several(with_activations(6, blocks=18))
    assert found.removed == [2, 3, 4, 5, 9, 10]
    chosen = [row for row in found.candidates if row.chosen]
    assert [(row.step, row.start, row.end) for row in chosen] == [(3, 2, 5), (3, 9, 10)]
    assert {row.step for row in found.candidates} == {1, 2, 3}
    assert chosen[-1].held_out_loss == pytest.approx(SetLosses(with_activations(6, blocks=18)).judge.mean(found.losses))


@torch.inference_mode()
def test_ends_stay_where_no_move_is_better(monkeypatch: pytest.MonkeyPatch) -> None:
    costs(monkeypatch, dict.fromkeys((2, 3, 4, 8, 9, 10), 0.01))
    found = choose_several(with_activations(6, blocks=18))
    assert found.removed == [2, 3, 4, 8, 9, 10]
    assert {row.step for row in found.candidates} == {1, 2}


@torch.inference_mode()
def test_no_more_runs_are_tried_where_the_guesses_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    costs(monkeypatch, {block: block / 100 for block in range(18)})
    found = choose_several(with_activations(2, blocks=18))
    assert found.removed == [1, 2]
    assert [row.step for row in found.candidates] == [1] * 4 + [2] * 4


@torch.inference_mode()
def test_it_looks_at_the_beginning_of_sequences_and_gives_the_losses_on_the_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("replaceme_core.engine.methods.refit_choice.POSITIONS", 12)
    task = with_activations()
    looked: list[int] = []
    loss = SetLosses.loss

    def noted(losses: SetLosses, removed: Collection[int], batch: int) -> float:
        looked.append(losses.judge.predictions[batch])
        return loss(losses, removed, batch)

    monkeypatch.setattr(SetLosses, "loss", noted)
    found = choose_several(task)
    assert set(looked) == {11}
    assert all(row.estimated for row in found.candidates)
    assert found.losses == pytest.approx(SetLosses(task).whole(found.removed))


@torch.inference_mode()
def test_short_sequences_are_seen_whole() -> None:
    task = with_activations()
    found = choose_several(task)
    assert found.losses == pytest.approx(SetLosses(task).whole(found.removed))
    assert [row.estimated for row in found.candidates if row.chosen] == [False] * REMOVED


@torch.inference_mode()
def test_it_looks_at_some_sequences_of_a_long_source_and_gives_the_losses_on_all() -> None:
    task, _ = make_task(tiny_model(), remove=REMOVED, fit=FIT, held_out=HELD_OUT, method={"name": "refit"})
    sources = torch.tensor([0] * 6 + [1] * 2)
    activations = replace(task.activations, held_out_sources=sources, source_names=("long", "short"), batch_size=1)
    task = replace(task, activations=activations)
    activations.capture()
    found = choose_several(task)
    assert all(row.estimated for row in found.candidates)
    assert len(found.losses) == 8
    assert found.losses == pytest.approx(SetLosses(task).whole(found.removed))
