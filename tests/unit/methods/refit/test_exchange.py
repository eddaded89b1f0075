"""Blocks that are exchanged for better ones."""

import itertools
from collections.abc import Collection

import pytest
import torch

from replaceme_core.methods.protocol import Task
from replaceme_core.methods.refit.exchange import TRIES, exchange
from replaceme_core.methods.refit.set_losses import SetLosses
from tests.fixtures.models.tasks import make_task, sampled
from tests.fixtures.models.tiny import BLOCKS, tiny_model

FIT, HELD_OUT = sampled(tiny_model(), 16, 24, seed=1), sampled(tiny_model(), 8, 24, seed=2)
METHOD = {"name": "refit", "ridge": 1e-2}
REMOVED = 2


def with_activations(remove: int = REMOVED) -> Task:
    task, _ = make_task(tiny_model(), remove=remove, fit=FIT, held_out=HELD_OUT, method=METHOD)
    task.activations.capture()
    return task


def all_scores(task: Task) -> tuple[SetLosses, dict[tuple[int, ...], float]]:
    losses = SetLosses(task)
    sets = itertools.combinations(range(1, BLOCKS), task.remove)
    return losses, {one: losses.judge.score(losses.all(one)) for one in sets}


@torch.inference_mode()
def test_the_result_is_a_set_that_no_trial_made_better() -> None:
    task = with_activations()
    losses, scores = all_scores(task)
    worst = max(scores, key=lambda one: scores[one])
    found = exchange(task, worst)
    assert len(found.removed) == REMOVED
    assert found.score == scores[tuple(found.removed)] < scores[worst]
    assert found.loss == losses.judge.mean(losses.all(found.removed))

    blocks = set(worst)
    for row in found.candidates:
        if row.chosen:
            assert row.instead_of in blocks
            blocks = blocks - {row.instead_of} | {row.start}
    assert sorted(blocks) == found.removed, "the table tells each exchange"
    for _, rows in itertools.groupby(found.candidates, key=lambda row: row.step):
        tried = list(rows)
        assert 0 < len(tried) <= TRIES
        assert sum(row.chosen for row in tried) <= 1
        assert len({row.instead_of for row in tried}) == 1


@torch.inference_mode()
def test_what_is_best_already_stays() -> None:
    task = with_activations()
    _, scores = all_scores(task)
    best = min(scores, key=lambda one: scores[one])
    found = exchange(task, best)
    assert tuple(found.removed) == best
    assert not any(row.chosen for row in found.candidates)


@torch.inference_mode()
@pytest.mark.parametrize("remove", [1, BLOCKS - 1])
def test_one_block_and_all_that_may_go(remove: int) -> None:
    task = with_activations(remove)
    _, scores = all_scores(task)
    start = max(scores, key=lambda one: scores[one])
    found = exchange(task, start)
    assert len(found.removed) == remove
    assert found.score == scores[tuple(found.removed)]
    assert (found.score < scores[start]) == (remove == 1)
    assert (found.candidates == []) == (remove > 1)


@torch.inference_mode()
def test_it_looks_at_the_beginning_of_sequences_and_is_judged_on_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("replaceme_core.methods.refit.exchange.POSITIONS", 12)
    task = with_activations()
    looked: list[int] = []
    loss = SetLosses.loss

    def noted(losses: SetLosses, removed: Collection[int], batch: int) -> float:
        looked.append(losses.judge.predictions[batch])
        return loss(losses, removed, batch)

    monkeypatch.setattr(SetLosses, "loss", noted)
    found = exchange(task, (1, 2))
    assert set(looked) == {11}
    assert all(row.estimated for row in found.candidates)
    whole = SetLosses(task)
    assert found.score == whole.judge.score(whole.all(found.removed))
