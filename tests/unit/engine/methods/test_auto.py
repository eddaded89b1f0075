"""`auto`: sets of blocks are ranked with maps and race as refits; the simplest good one wins, within the budget."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from replaceme_core.engine.activations.capture import Losses
from replaceme_core.engine.methods.auto import _Budget, auto
from replaceme_core.engine.methods.refit import JudgedRefit, refit_without
from replaceme_core.engine.methods.task import Task
from replaceme_core.request.defaults import RACE_PART, RACING
from replaceme_core.request.method import Method
from replaceme_core.request.removal import block_ranges
from tests.fixtures.models.recorder import Recorder
from tests.fixtures.models.tasks import OWN_TEXT, carry_out, make_task, mean_loss, operate
from tests.fixtures.models.tiny import tiny_model

FIT, HELD_OUT = OWN_TEXT[:32], OWN_TEXT[48:]


def task_of(method: dict[str, object], **fields: object) -> tuple[Task, Recorder]:
    asked = {"name": "auto", **method}
    return make_task(tiny_model(), remove=2, fit=FIT, held_out=HELD_OUT, method=asked, **fields)


Change = Callable[[Sequence[int], Losses], Losses]


def change_refits(monkeypatch: pytest.MonkeyPatch, change: Change) -> list[tuple[list[int], int, int]]:
    """Let `change(removed, losses)` be the held-out losses of each refit.

    Returns what is refitted, on how many batches, and on how many it is judged.
    """
    seen: list[tuple[list[int], int, int]] = []

    def noted(
        task: Task, removed: Sequence[int], *, fit: Sequence[int], judged: Collection[int] | None = None
    ) -> JudgedRefit:
        found = refit_without(task, removed, fit=fit, judged=judged)
        seen.append((list(removed), len(fit), len(found.losses)))
        losses = change(removed, found.losses)
        return replace(found, losses=losses)

    monkeypatch.setattr("replaceme_core.engine.methods.auto.refit_without", noted)
    return seen


def scaled(losses: Losses, factor: float) -> Losses:
    return {number: factor * loss for number, loss in losses.items()}


def test_the_result_is_worth_what_was_judged() -> None:
    task, recorder = task_of({})
    found = carry_out(task)
    assert found.method == Method.REFIT, "else this says nothing"
    assert found.left_out == []
    assert task.activations.dense_block_runs == len(task.block_runner.blocks) * len(task.activations.batches)
    assert recorder.value("final_scale") == found.final_scale
    assert mean_loss(operate(tiny_model(), found), HELD_OUT) == pytest.approx(recorder.values("held_out_loss")[-1])
    chosen = [row for row in found.candidates if row.chosen]
    assert [block for row in chosen for block in row.cut.blocks] == list(found.removed)


@torch.inference_mode()
def test_the_best_sets_of_each_number_of_runs_race_on_a_part_and_the_winner_gets_all_the_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task, _ = task_of({})
    dense = task.activations.dense_losses()
    seen = change_refits(
        monkeypatch, lambda removed, _: {one: loss * (0.5 + removed[0] / 100) for one, loss in dense.items()}
    )
    found = carry_out(task)
    *first, last = seen
    batches, panel = len(task.activations.fit_batches), len(task.activations.held_out_batches)
    assert {one[1:] for one in first} == {(round(RACE_PART * batches), panel // 2)}
    runs = [1 + sum(after > before + 1 for before, after in pairwise(removed)) for removed, *_ in first]
    assert sorted(runs) == [1] * RACING + [2] * RACING
    assert last == (list(found.removed), batches, panel)
    assert min(first)[0][0] == last[0][0]


@torch.inference_mode()
@pytest.mark.parametrize(
    ("noise", "runs"),
    [
        ([0.98, 0.98, 0.99, 0.99] * 2, 2),  # two runs are better by more than one standard error
        ([0.9, 0.9, 1.09, 1.09] * 2, 1),  # within it: fewer runs are simpler
    ],
)
def test_more_runs_must_be_better_by_more_than_one_standard_error(
    monkeypatch: pytest.MonkeyPatch, noise: list[float], runs: int
) -> None:
    task, _ = task_of({})
    dense = task.activations.dense_losses()

    def losses(removed: Sequence[int], _: Losses) -> Losses:
        is_one = removed[-1] == removed[0] + 1
        factors = zip(dense, noise, strict=True)
        return {number: 0.5 * dense[number] * (1.0 if is_one else factor) for number, factor in factors}

    change_refits(monkeypatch, losses)
    found = carry_out(task)
    assert found.method == Method.REFIT
    assert (found.removed[1] == found.removed[0] + 1) == (runs == 1)


def test_of_named_blocks_nothing_is_chosen_and_one_refit_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = change_refits(monkeypatch, lambda _, losses: losses)
    task, _ = task_of({}, drop=[2, 4])
    found = carry_out(task)
    assert found.method == Method.REFIT, "else this says nothing"
    assert [one[:2] for one in seen] == [([2, 4], len(task.activations.fit_batches))]
    assert [(row.cut.start, row.cut.end) for row in found.candidates if row.chosen] == [(2, 2), (4, 4)]


def test_the_best_set_with_maps_is_taken_where_refits_are_no_better(monkeypatch: pytest.MonkeyPatch) -> None:
    change_refits(monkeypatch, lambda _, losses: scaled(losses, 10))
    found = carry_out(task_of({})[0])
    assert found.method == Method.LEAST_SQUARES
    assert not found.changes
    chosen = [row for row in found.candidates if row.chosen]
    assert [block for row in chosen for block in row.cut.blocks] == list(found.removed)
    others = [row.held_out_loss for row in found.candidates if row.held_out_loss is not None and not row.chosen]
    assert others, "the others that were tried are in the table"


def test_what_would_not_end_within_the_budget_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 20))
    monkeypatch.setattr("replaceme_core.engine.methods.auto.time.monotonic", lambda: float(next(clock)))
    task, _ = task_of({"time_budget_seconds": 15})
    found = carry_out(task)
    assert found.method == Method.LEAST_SQUARES
    assert len(found.left_out) > RACING
    blocks = block_ranges(found.removed)
    assert f"the refit without blocks {blocks} on a part of the text" in found.left_out


@torch.inference_mode()
def test_without_time_for_all_the_text_maps_are_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([0.0, *[10.0 + 2 * number for number in range(1000)]])
    monkeypatch.setattr("replaceme_core.engine.methods.auto.time.monotonic", lambda: next(moments))
    seen = change_refits(monkeypatch, lambda _, losses: scaled(losses, 0.5))
    task, _ = task_of({"time_budget_seconds": 30})  # a refit on an eighth takes 2 seconds here, so one on all takes 16
    found = auto(task)
    assert len(seen) == 2 * RACING, "the race has been run"
    assert found.method == Method.LEAST_SQUARES
    assert len(found.left_out) == 1


def test_a_refit_is_expected_to_take_what_one_on_a_part_of_the_text_took(monkeypatch: pytest.MonkeyPatch) -> None:
    """And, until one was measured, as long as the step before."""
    now = 0.0
    monkeypatch.setattr("replaceme_core.engine.methods.auto.time.monotonic", lambda: now)
    budget = _Budget(seconds=100)
    now = 60.0
    assert not budget.allows(1, "all, by the first step")
    assert budget.allows(1 / 8, "a part")
    now += 4
    assert budget.allows(1, "all, measured")
    now += 32
    assert not budget.allows(1, "all, too late")
    assert budget.left_out == ["all, by the first step", "all, too late"]
