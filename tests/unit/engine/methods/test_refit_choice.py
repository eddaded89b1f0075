"""Which blocks a refit removes: runs of them or one at a time, on as much of the text as can keep its streams."""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import pytest
import torch

from replaceme_core.engine.activations.cut_sums import Batch
from replaceme_core.engine.activations.tensor_store import activation_bytes
from replaceme_core.engine.methods.refit_choice import (
    BlockChoice,
    RunByRun,
    SetLosses,
    batches_for_choice,
    divisions,
    early_blocks,
    for_choice,
    keeps_all,
    neighbours,
)
from replaceme_core.engine.methods.replay import variant_losses
from replaceme_core.engine.methods.task import Task
from replaceme_core.engine.model.changes import runs
from replaceme_core.errors import CalibrationTooSmall
from tests.fixtures.models.recorder import Recorder
from tests.fixtures.models.tasks import carry_out, make_task, mean_loss, operate, sampled
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
    monkeypatch.setattr("replaceme_core.engine.methods.refit_choice.RUN_POSITIONS", 12)
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


def task_of(method: dict[str, object]) -> tuple[Task, Recorder]:
    return make_task(tiny_model(), remove=2, fit=FIT, held_out=HELD_OUT, method=method)


def room_for(monkeypatch: pytest.MonkeyPatch, task: Task, *, sequences: int) -> None:
    size = activation_bytes(task.block_runner, tokens=sequences * FIT.shape[1])
    monkeypatch.setattr("replaceme_core.engine.methods.refit_choice.CHOICE_STREAM_BYTES", size)


@pytest.mark.parametrize(
    ("sources", "size", "expected"),
    [
        ([0] * 8, 1, [0] * 8),
        ([0, 0, 1] * 4, 1, [0, 0, 1, 0, 0, 1, 1, 1]),
        ([0] * 6 + [1] * 2, 1, [0] * 4 + [1] * 2),
        ([0] * 6 + [1] * 2, 2, [0] * 2 + [1] * 2),
        ([0] * 14 + [1] * 6, 1, [0] * 6 + [1] * 6),
    ],
)
def test_blocks_are_chosen_on_as_many_sequences_of_each_source(
    sources: list[int], size: int, expected: list[int]
) -> None:
    """Four, or as many as the one that has fewest."""
    task, _ = task_of({"name": "auto"})
    batches = [Batch(tokens=HELD_OUT[:size], held_out=True, source=source) for source in sources]
    task.activations.batches = [*task.activations.batches[: task.activations.held_out_batches.start], *batches]
    chosen = [task.activations.batches[number] for number in batches_for_choice(task)]
    assert [batch.source for batch in chosen] == expected
    assert all(batch.held_out for batch in chosen)


def test_as_many_sequences_as_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    task, _ = task_of({"name": "refit"})
    assert for_choice(task) is task
    room_for(monkeypatch, task, sequences=24)
    assert for_choice(task) is task
    room_for(monkeypatch, task, sequences=12)
    part = for_choice(task)
    assert torch.equal(part.tokens.fit, FIT[:8])
    assert torch.equal(part.tokens.held_out, HELD_OUT[:4])


def test_too_small_a_part_for_a_map_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    short = {"fit": FIT[:, :8], "held_out": HELD_OUT[:, :8]}  # one sequence is less than the width of 16
    task, _ = make_task(tiny_model(), remove=2, method={"name": "refit"}, **short)
    room_for(monkeypatch, task, sequences=0)
    with pytest.raises(CalibrationTooSmall):
        for_choice(task)


def test_refit_chooses_on_the_part_and_fits_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    method = {"name": "refit", "ridge": 1e-2, "ridge_later": 0.1}
    task, recorder = task_of(method)
    room_for(monkeypatch, task, sequences=12)
    found = carry_out(task)
    assert recorder.value("choice_tokens") == 12 * 24
    assert not task.activations.complete, "the streams of all tokens are nowhere"
    named, _ = make_task(tiny_model(), fit=FIT, held_out=HELD_OUT, method=method, drop=list(found.removed))
    whole = carry_out(named)
    for one, other in zip(found.changes, whole.changes, strict=True):
        assert torch.equal(one.change, other.change)
    blocks = len(task.block_runner.blocks)
    assert task.activations.dense_block_runs > named.activations.dense_block_runs >= blocks, (
        "the part's pass is counted"
    )


def test_auto_keeps_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    task, recorder = task_of({"name": "auto"})
    room_for(monkeypatch, task, sequences=12)
    assert not keeps_all(task)
    found = carry_out(task)
    assert not task.activations.complete
    losses = recorder.values("held_out_loss")
    assert len(losses) in (3, 5)
    assert mean_loss(operate(tiny_model(), found), HELD_OUT) <= min(losses[0], losses[-1]) + 1e-3


@torch.inference_mode()
def test_batches_that_will_be_asked_for_are_run_together(monkeypatch: pytest.MonkeyPatch) -> None:
    task, _ = make_task(tiny_model(), remove=2, fit=FIT, held_out=HELD_OUT, method={"name": "refit"})
    task.activations.capture()
    losses = SetLosses(task)
    apart = losses.whole([2])
    asked = list[int]()

    def noted(*given: Any, batches: list[int], **named: Any) -> list[float]:
        asked.append(len(batches))
        return variant_losses(*given, batches=batches, **named)

    monkeypatch.setattr("replaceme_core.engine.methods.refit_choice.variant_losses", noted)
    assert [losses.loss([2], batch) for batch in range(8)] == pytest.approx(apart)
    assert asked == [4, 4], "nothing is left out before four batches of a source"


@pytest.mark.parametrize("removed", [[3, 4, 5, 6, 12, 13, 14, 15], [4, 9], [3, 5, 7], [21, 22]])
def test_one_block_comes_back_and_another_goes(removed: list[int]) -> None:
    allowed = range(3, 23)
    found = neighbours(removed, allowed=allowed)
    assert found
    for blocks in found:
        assert len(blocks) == len(set(blocks)) == len(removed)
        assert len(set(blocks) - set(removed)) == 1
        assert set(blocks) <= set(allowed)
        assert len(runs(blocks)) <= len(runs(removed))


def test_a_block_in_the_middle_of_a_run_stays_away() -> None:
    assert all({4, 5} <= set(blocks) for blocks in neighbours([3, 4, 5, 6], allowed=range(1, 9)))


def test_a_run_of_one_block_can_join_another() -> None:
    assert (3, 4, 5) in neighbours([3, 4, 9], allowed=range(1, 12))
