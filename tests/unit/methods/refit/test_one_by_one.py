"""Blocks removed one after another, early ones only."""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import pytest
import torch

from replaceme_core.methods.cuts import runs
from replaceme_core.methods.protocol import Task
from replaceme_core.methods.refit.one_by_one import OneByOne, early_blocks
from replaceme_core.methods.refit.set_losses import SetLosses
from replaceme_core.selection.replay import variant_losses
from tests.fixtures.models.tasks import make_task, sampled
from tests.fixtures.models.tiny import BLOCKS, tiny_model

FIT, HELD_OUT = sampled(tiny_model(), 16, 24, seed=1), sampled(tiny_model(), 8, 24, seed=2)
REMOVED = 2


def with_activations(remove: int = REMOVED) -> Task:
    task, _ = make_task(tiny_model(), remove=remove, fit=FIT, held_out=HELD_OUT, method={"name": "refit"})
    task.activations.capture()
    return task


@pytest.mark.parametrize("blocks", [2, 3, 4, 12, 30])
def test_a_third_of_the_kept_blocks_follows_and_enough_may_go(blocks: int) -> None:
    for remove in range(1, blocks):
        found = early_blocks(blocks, remove=remove)
        assert found.start == 1
        assert len(found) >= remove
        assert blocks - found.stop == (blocks - remove) // 3


@torch.inference_mode()
def test_the_last_blocks_stay_even_where_they_cost_least(monkeypatch: pytest.MonkeyPatch) -> None:
    task = with_activations()
    allowed = early_blocks(BLOCKS, remove=REMOVED)
    losses = SetLosses.loss

    def cheap_late(of: SetLosses, removed: Collection[int], batch: int) -> float:
        return losses(of, removed, batch) / (1 + sum(removed))

    monkeypatch.setattr(SetLosses, "loss", cheap_late)
    assert max(OneByOne(task).choose().removed) >= allowed.stop, "else this says nothing"
    found = OneByOne(task, early=True).choose()
    assert len(set(found.removed)) == REMOVED
    assert set(found.removed) <= set(allowed)
    assert {row.start for row in found.candidates} <= set(allowed)


@torch.inference_mode()
def test_early_tries_no_other_block_where_the_guess_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    def as_guessed(of: SetLosses, removed: Collection[int], numbers: Collection[int], _: int | None) -> list[float]:
        dense = dict(zip(of._numbers, of.judge.dense, strict=True))
        return [dense[number] * (1 + sum(removed) / 100) for number in numbers]

    monkeypatch.setattr(SetLosses, "_losses", as_guessed)
    monkeypatch.setattr("replaceme_core.methods.refit.one_by_one.LEAST_TRIES", 2)
    task = with_activations()
    for early, tries in ((True, 1), (False, 2)):
        found = OneByOne(task, early=early).choose()
        assert found.removed == list(range(1, REMOVED + 1)), "the cheapest first"
        assert [row.step for row in found.candidates] == [step for step in range(1, REMOVED + 1) for _ in range(tries)]


@torch.inference_mode()
def test_few_runs_of_neighbours_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = SetLosses.loss

    def cheap_if_odd(of: SetLosses, removed: Collection[int], batch: int) -> float:
        return losses(of, removed, batch) / 10 ** sum(block % 2 for block in removed)

    monkeypatch.setattr(SetLosses, "loss", cheap_if_odd)
    monkeypatch.setattr("replaceme_core.methods.refit.one_by_one.LEAST_TRIES", BLOCKS)
    monkeypatch.setattr("replaceme_core.methods.refit.one_by_one.FEW_TRIES", BLOCKS)
    monkeypatch.setattr("replaceme_core.methods.refit.one_by_one.early_blocks", lambda blocks, remove: range(1, blocks))
    task = with_activations(3)
    assert len(runs(OneByOne(task).choose().removed)) == 3, "else this says nothing"
    assert len(runs(OneByOne(task, early=True).choose().removed)) <= 2
    monkeypatch.setattr("replaceme_core.methods.refit.one_by_one.LEAST_RUNS", 1)
    assert len(runs(OneByOne(task, early=True).choose().removed)) == 1
    monkeypatch.setattr("replaceme_core.methods.refit.one_by_one.BLOCKS_IN_RUN", 1)
    assert len(runs(OneByOne(task, early=True).choose().removed)) == 3


@torch.inference_mode()
def test_it_looks_at_the_beginning_of_sequences_and_gives_the_losses_on_the_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("replaceme_core.methods.refit.part_of_text.POSITIONS", 12)
    task = with_activations()
    looked: list[int] = []
    loss = SetLosses.loss

    def noted(losses: SetLosses, removed: Collection[int], batch: int) -> float:
        looked.append(losses.judge.predictions[batch])
        return loss(losses, removed, batch)

    monkeypatch.setattr(SetLosses, "loss", noted)
    found = OneByOne(task, early=True).choose()
    assert set(looked) == {11}
    assert all(row.estimated for row in found.candidates)
    assert found.losses == pytest.approx(SetLosses(task).whole(found.removed))


@torch.inference_mode()
def test_short_sequences_are_seen_whole() -> None:
    task = with_activations()
    found = OneByOne(task, early=True).choose()
    assert found.losses == pytest.approx(SetLosses(task).whole(found.removed))
    assert [row.estimated for row in found.candidates if row.chosen] == [False] * REMOVED


@torch.inference_mode()
def test_it_looks_at_some_sequences_of_a_long_source_and_gives_the_losses_on_all() -> None:
    task, _ = make_task(tiny_model(), remove=REMOVED, fit=FIT, held_out=HELD_OUT, method={"name": "refit"})
    sources = torch.tensor([0] * 6 + [1] * 2)
    activations = replace(task.activations, held_out_sources=sources, source_names=("long", "short"), batch_size=1)
    task = replace(task, activations=activations)
    activations.capture()
    found = OneByOne(task, early=True).choose()
    assert all(row.estimated for row in found.candidates)
    assert len(found.losses) == 8
    assert found.losses == pytest.approx(SetLosses(task).whole(found.removed))


@torch.inference_mode()
def test_batches_that_will_be_asked_for_are_run_together(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = SetLosses(with_activations())
    apart = losses.whole([2])
    asked = list[int]()

    def noted(*given: Any, batches: list[int], **named: Any) -> list[list[float]]:
        asked.append(len(batches))
        return variant_losses(*given, batches=batches, **named)

    monkeypatch.setattr("replaceme_core.methods.refit.set_losses.variant_losses", noted)
    assert [losses.loss([2], batch) for batch in range(8)] == pytest.approx(apart)
    assert asked == [4, 4], "nothing is left out before four batches of a source"
