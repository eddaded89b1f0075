"""`auto`: the best contender by honest loss, within its budget."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from replaceme_core.engine.methods.auto import Contender, _Budget, _with_least_squares, auto, find_contenders
from replaceme_core.engine.methods.refit import JudgedRefit, judge_refit
from replaceme_core.engine.methods.refit_choice import BlockChoice
from replaceme_core.engine.methods.replay import held_out_judge
from replaceme_core.engine.methods.task import Candidate, Pruning, Task
from replaceme_core.engine.text.tokens import REPEATED
from replaceme_core.request.method import Method
from replaceme_core.request.removal import block_ranges
from replaceme_core.runner.messages import Progress
from tests.fixtures.models.recorder import Recorder
from tests.fixtures.models.tasks import carry_out, make_task, mean_loss, operate, sampled
from tests.fixtures.models.tiny import tiny_model

WITH_WINDOW = {"name": "auto", "time_budget_seconds": 86_400.0}
"""With a budget the window with a map comes first."""
FIT, HELD_OUT = sampled(tiny_model(), 16, 24, seed=1), sampled(tiny_model(), 8, 24, seed=2)


def contenders_of(task: Task) -> tuple[list[Contender], Pruning | None]:
    budget = _Budget(task.spec.method.time_budget_seconds)
    return find_contenders(task, held_out_judge(task.activations, recall=True), budget)


def test_it_takes_the_contender_of_least_held_out_loss() -> None:
    task, recorder = make_task(tiny_model(), remove=2, fit=FIT, held_out=HELD_OUT, method={"name": "auto"})
    found = carry_out(task)
    losses = recorder.values("held_out_loss")
    assert len(losses) == 3, "two choices of blocks, and a refit"
    assert found.method == Method.REFIT, "else this says nothing"
    assert found.left_out == []
    assert task.activations.dense_block_runs == len(task.block_runner.blocks) * len(task.activations.batches)
    # a map is solved once more with the held-out tokens, so it may be better on them than it was judged
    assert mean_loss(operate(tiny_model(), found), HELD_OUT) <= min(losses[0], losses[-1]) + 1e-3


@torch.inference_mode()
@pytest.mark.parametrize(("several", "refitted"), [(1.01, [[3, 4], [1, 3]]), (1.2, [[3, 4]])])
def test_several_runs_are_refitted_beside_one_where_they_are_far_better_with_maps(
    monkeypatch: pytest.MonkeyPatch, several: float, refitted: list[list[int]]
) -> None:
    """Factors are of the dense losses."""
    task, _ = _with_choices(monkeypatch, several=several)
    contenders, _ = contenders_of(task)
    assert [found.removed for found in contenders] == refitted
    for found in contenders:
        assert [block for row in found.candidates if row.chosen for block in row.cut.blocks] == found.removed
        cuts = [row.cut for row in found.candidates]
        assert len(cuts) == len(set(cuts)), "a window has one row"
        is_window = found.removed == [3, 4]
        assert (found.candidates[-1].distance is not None) == is_window, "what was measured of the window"


@torch.inference_mode()
@pytest.mark.parametrize(
    ("factors", "removed"),
    [([0.98, 0.97] * 4, [1, 3]), ([0.99, 0.97, 1.0] * 2 + [0.99] * 2, [3, 4]), ([1.01] * 8, [3, 4])],
)
def test_several_runs_are_taken_where_they_are_significantly_better(
    monkeypatch: pytest.MonkeyPatch, factors: list[float], removed: list[int]
) -> None:
    """Maps flatter several runs (docs/explanation/how-the-default-works.md#runs).

    Factors are those of the losses by held-out sequence without several runs, to those without one.
    """

    def judged(task: Task, without: Sequence[int], candidates: Sequence[Candidate]) -> JudgedRefit:
        found, dense = judge_refit(task, without, candidates), held_out_judge(task.activations).dense
        assert len(dense) == len(factors)
        of_these = factors if without == [1, 3] else [1.0] * len(factors)
        losses = [loss * 0.5 * factor for loss, factor in zip(dense, of_these, strict=True)]
        return replace(found, pruning=replace(found.pruning, held_out_losses=losses))

    monkeypatch.setattr("replaceme_core.engine.methods.auto.judge_refit", judged)
    task, recorder = _with_choices(monkeypatch, several=1.01)
    found = auto(task)
    assert found.method == Method.REFIT
    assert list(found.removed) == removed
    assert {change.block for change in found.changes} <= set(range(6)) - set(removed), "the refit of these blocks"
    assert [block for row in found.candidates if row.chosen for block in row.cut.blocks] == removed
    assert len(recorder.values("held_out_score")) == 5, "a window, two choices, two refits"


def _with_choices(monkeypatch: pytest.MonkeyPatch, *, several: float) -> tuple[Task, Recorder]:
    """A task for which 1 and 3 are chosen as several runs, and 3 and 4 as one, whose losses are 1.21 of the dense."""

    def choose_runs(task: Task) -> list[BlockChoice]:
        dense = held_out_judge(task.activations).dense
        row = Candidate(start=1, end=1, step=1, held_out_loss=1.0, chosen=True)
        return [
            BlockChoice(
                removed=[1, 3],
                candidates=[row, replace(row, start=3, end=3, step=2)],
                losses=[loss * several for loss in dense],
            ),
            BlockChoice(
                removed=[3, 4],
                candidates=[replace(row, start=3, end=4, step=None)],
                losses=[loss * 1.21 for loss in dense],
            ),
        ]

    monkeypatch.setattr("replaceme_core.engine.methods.auto.choose_runs", choose_runs)
    return make_task(tiny_model(), remove=2, fit=FIT, held_out=HELD_OUT, method=WITH_WINDOW)


def test_the_refit_that_wins_is_the_one_that_was_judged() -> None:
    """A refit that a request names is solved once more with the held-out tokens; this one is not."""
    task, recorder = make_task(tiny_model(), drop=[2, 4], fit=FIT, held_out=HELD_OUT, method={"name": "auto"})
    found = carry_out(task)
    assert found.method == Method.REFIT, "else this says nothing"
    judged = recorder.values("held_out_loss")[-1]
    unscaled = operate(tiny_model(), replace(found, final_scale=1.0))
    assert mean_loss(unscaled, HELD_OUT) == pytest.approx(judged, abs=1e-5)


@pytest.mark.parametrize(("better", "searched"), [(True, 0), (False, 1)])
def test_the_window_with_a_map_is_searched_where_the_refit_is_no_better(
    monkeypatch: pytest.MonkeyPatch, better: bool, searched: int
) -> None:
    windows = list[Pruning]()

    def least_squares(task: Task, *, progress: Progress) -> Pruning:
        windows.append(_with_least_squares(task, progress=progress))
        return windows[-1]

    def judged(task: Task, removed: Sequence[int], candidates: Sequence[Candidate]) -> JudgedRefit:
        found = judge_refit(task, removed, candidates)
        losses = [loss * (1 if better else 10) for loss in found.pruning.held_out_losses]
        return replace(found, pruning=replace(found.pruning, held_out_losses=losses))

    monkeypatch.setattr("replaceme_core.engine.methods.auto._with_least_squares", least_squares)
    monkeypatch.setattr("replaceme_core.engine.methods.auto.judge_refit", judged)
    task, _ = make_task(tiny_model(), remove=2, fit=FIT, held_out=HELD_OUT, method={"name": "auto"})
    found = carry_out(task)
    assert len(windows) == searched
    assert found.method == (Method.REFIT if better else Method.LEAST_SQUARES)
    if not better:
        assert found.removed == windows[0].removed


def test_what_would_not_end_within_the_budget_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr("replaceme_core.engine.methods.auto.time.monotonic", lambda: float(next(clock)))
    method = {"name": "auto", "time_budget_seconds": 15}
    task, recorder = make_task(tiny_model(), remove=2, fit=FIT, held_out=HELD_OUT, method=method)
    found = carry_out(task)
    assert found.method == Method.LEAST_SQUARES
    assert len(recorder.values("held_out_loss")) == 1
    blocks = block_ranges(found.removed)
    assert found.left_out == ["the choice of runs of blocks", f"the refit without blocks {blocks}"]


def test_named_blocks_leave_only_ways_to_make_up_for_them() -> None:
    task, recorder = make_task(tiny_model(), fit=FIT, held_out=HELD_OUT, drop=[2, 4], method={"name": "auto"})
    assert list(carry_out(task).removed) == [2, 4]
    assert len(recorder.values("held_out_loss")) == 2


@torch.inference_mode()
def test_repeated_passages_count_where_sets_of_blocks_are_compared() -> None:
    task, recorder = make_task(tiny_model(), remove=2, fit=FIT, held_out=HELD_OUT, method=WITH_WINDOW)
    sources = torch.tensor([0] * 4 + [1] * 4)
    task = replace(
        task, activations=replace(task.activations, held_out_sources=sources, source_names=("text", REPEATED))
    )
    _, maps = contenders_of(task)
    assert maps is not None
    losses = maps.held_out_losses
    counted, uncounted = (held_out_judge(task.activations, recall=recall).score(losses) for recall in (True, False))
    assert recorder.values("held_out_score")[0] == counted != uncounted
