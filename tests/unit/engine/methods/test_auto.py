"""`auto`: the best contender by honest loss, within its budget."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch

from replaceme_core.engine.methods.auto import auto
from replaceme_core.engine.methods.refit import JudgedRefit, judge_refit
from replaceme_core.engine.methods.refit_choice import BlockChoice
from replaceme_core.engine.methods.replay import held_out_judge
from replaceme_core.engine.methods.task import Candidate, Task
from replaceme_core.engine.text.tokens import REPEATED
from replaceme_core.request.method import Method
from replaceme_core.request.removal import block_ranges
from tests.fixtures.models.recorder import Recorder
from tests.fixtures.models.tasks import carry_out, make_task, mean_loss, operate, sampled
from tests.fixtures.models.tiny import tiny_model

FIT, HELD_OUT = sampled(tiny_model(), 16, 24, seed=1), sampled(tiny_model(), 8, 24, seed=2)


def task_of(method: dict[str, object], **fields: object) -> tuple[Task, Recorder]:
    asked = {"name": "auto", **method}
    return make_task(tiny_model(), remove=2, fit=FIT, held_out=HELD_OUT, method=asked, **fields)


def change_refits(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[Sequence[int], Sequence[float]], list[float]]
) -> None:
    """Let `change(removed, losses)` be the held-out losses of each refit."""

    def judged(task: Task, removed: Sequence[int], candidates: Sequence[Candidate]) -> JudgedRefit:
        found = judge_refit(task, removed, candidates)
        losses = change(removed, found.pruning.held_out_losses)
        return replace(found, pruning=replace(found.pruning, held_out_losses=losses))

    monkeypatch.setattr("replaceme_core.engine.methods.auto.judge_refit", judged)


def test_it_takes_the_contender_of_least_held_out_loss() -> None:
    task, recorder = task_of({})
    found = carry_out(task)
    losses = recorder.values("held_out_loss")
    assert len(losses) == 3, "two choices of blocks, and a refit"
    assert found.method == Method.REFIT, "else this says nothing"
    assert found.left_out == []
    assert task.activations.dense_block_runs == len(task.block_runner.blocks) * len(task.activations.batches)
    # a map is solved once more with the held-out tokens, so it may be better on them than it was judged
    assert mean_loss(operate(tiny_model(), found), HELD_OUT) <= min(losses[0], losses[-1]) + 1e-3


@torch.inference_mode()
@pytest.mark.parametrize(
    ("several", "factors", "removed", "scores"),
    [
        (1.01, [0.98, 0.97] * 4, [1, 3], 5),
        (1.01, [0.99, 0.97, 1.0] * 2 + [0.99] * 2, [3, 4], 5),  # within the error of the difference
        (1.2, [0.5] * 8, [3, 4], 4),  # not far better with maps, which flatter several runs: not refitted
    ],
)
def test_several_runs_are_taken_where_they_are_far_better_with_maps_and_surely_better_refitted(
    monkeypatch: pytest.MonkeyPatch, several: float, factors: list[float], removed: list[int], scores: int
) -> None:
    """1 and 3 are chosen as several runs, 3 and 4 as one (docs/explanation/how-the-default-works.md#runs).

    With maps the losses without 1 and 3 are `several` of the dense ones, without 3 and 4 1.21 of them. After a refit
    `factors` are those of the losses without several runs to those without one, by held-out sequence.
    """

    def choose_runs(task: Task) -> list[BlockChoice]:
        dense = held_out_judge(task.activations).dense
        row = Candidate(start=1, end=1, step=1, held_out_loss=1.0, chosen=True)
        rows = {several: [row, replace(row, start=3, end=3, step=2)], 1.21: [replace(row, start=3, end=4, step=None)]}
        return [
            BlockChoice(removed=blocks, candidates=rows[factor], losses=[loss * factor for loss in dense])
            for blocks, factor in (([1, 3], several), ([3, 4], 1.21))
        ]

    monkeypatch.setattr("replaceme_core.engine.methods.auto.choose_runs", choose_runs)
    task, recorder = task_of({"time_budget_seconds": 86_400.0})  # with a budget the window with a map comes first
    dense = held_out_judge(task.activations).dense
    of_one = [0.5 * loss for loss in dense]
    of_several = [loss * factor for loss, factor in zip(of_one, factors, strict=True)]
    change_refits(monkeypatch, lambda without, _: of_several if without == [1, 3] else of_one)
    found = auto(task)
    assert found.method == Method.REFIT
    assert list(found.removed) == removed
    assert {change.block for change in found.changes} <= set(range(6)) - set(removed), "the refit of these blocks"
    assert [block for row in found.candidates if row.chosen for block in row.cut.blocks] == removed
    cuts = [row.cut for row in found.candidates]
    assert len(cuts) == len(set(cuts)), "a window has one row"
    assert (found.candidates[-1].distance is not None) == (removed == [3, 4]), "what was measured of the window"
    assert len(recorder.values("held_out_score")) == scores, "a window, two choices, and the refits"


def test_of_named_blocks_the_refit_that_wins_is_the_one_that_was_judged() -> None:
    """A refit that a request names is solved once more with the held-out tokens; this one is not."""
    task, recorder = task_of({}, drop=[2, 4])
    found = carry_out(task)
    assert found.method == Method.REFIT, "else this says nothing"
    assert list(found.removed) == [2, 4]
    losses = recorder.values("held_out_loss")
    assert len(losses) == 2, "maps, and a refit"
    unscaled = operate(tiny_model(), replace(found, final_scale=1.0))
    assert mean_loss(unscaled, HELD_OUT) == pytest.approx(losses[-1], abs=1e-5)


def test_the_window_with_a_map_is_taken_where_the_refit_is_no_better(monkeypatch: pytest.MonkeyPatch) -> None:
    change_refits(monkeypatch, lambda _, losses: [10 * loss for loss in losses])
    found = carry_out(task_of({})[0])
    assert found.method == Method.LEAST_SQUARES
    assert found.removed == carry_out(task_of({"name": "least_squares"})[0]).removed


def test_what_would_not_end_within_the_budget_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr("replaceme_core.engine.methods.auto.time.monotonic", lambda: float(next(clock)))
    task, recorder = task_of({"time_budget_seconds": 15})
    found = carry_out(task)
    assert found.method == Method.LEAST_SQUARES
    assert len(recorder.values("held_out_loss")) == 1
    blocks = block_ranges(found.removed)
    assert found.left_out == ["the choice of runs of blocks", f"the refit without blocks {blocks}"]


@torch.inference_mode()
def test_repeated_passages_count_where_sets_of_blocks_are_compared() -> None:
    def marked(method: dict[str, object]) -> tuple[Task, Recorder]:
        task, recorder = task_of(method, drop=[2, 4])
        sources = torch.tensor([0] * 4 + [1] * 4)
        passes = replace(task.activations, held_out_sources=sources, source_names=("text", REPEATED))
        return replace(task, activations=passes), recorder

    task, recorder = marked({})
    auto(task)
    losses = carry_out(marked({"name": "least_squares"})[0]).held_out_losses
    counted, uncounted = (held_out_judge(task.activations, recall=recall).score(losses) for recall in (True, False))
    assert recorder.values("held_out_score")[0] == pytest.approx(counted) != pytest.approx(uncounted)
