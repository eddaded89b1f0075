"""`refit`: which blocks go, what it is worth, and that it is never worse than nothing."""

import itertools
import weakref
from dataclasses import replace

import pytest
import torch

from replaceme_core.engine.activations.capture import Activations, Targets
from replaceme_core.engine.methods.refit import least, refit_without
from replaceme_core.engine.methods.task import Pruning, Task
from replaceme_core.engine.model.changes import Cut
from replaceme_core.engine.numerics.solve import solve_delta
from replaceme_core.request.calibration import SELF_GENERATED
from tests.fixtures.models.tasks import OWN_TEXT, carry_out, make_task, mean_loss, operate, sampled
from tests.fixtures.models.tiny import BLOCKS, BY_NAME, tiny_model, token_ids

FIT, HELD_OUT = OWN_TEXT[:16], OWN_TEXT[32:40]
METHOD = {"name": "refit", "ridge": 1e-2, "ridge_later": 0.1}


def refit_of(task: Task, removed: list[int]) -> Pruning:
    return refit_without(task, removed, fit=task.activations.fit_batches).finished([])


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
        part = [0, *task.activations.held_out_batches]  # maps that rank are fitted on a part of the text
        moments = task.activations.statistics(Cut(start=block, end=block), numbers=part).fit
        delta = solve_delta(moments, ridge=1e-2)
        weight = model.model.layers[block - 1].mlp.down_proj.weight
        weight.add_((delta.T @ weight.double()).float())
        del model.model.layers[block]
        model.config.num_hidden_layers -= 1
        losses[block] = mean_loss(model, HELD_OUT[::2])  # and judged on every second held-out batch
    (best,) = pruning.removed
    assert best == min(losses, key=lambda block: losses[block])
    table = {one.cut.start: one.held_out_loss for one in pruning.candidates}
    assert table == pytest.approx(losses, abs=1e-4)


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
    held_out = torch.cat([sampled(model, 28, 24, seed=2), token_ids(4, 24, seed=3)])  # nobody could foresee the last
    task, recorder = make_task(model, fit=sampled(model, 16, 24), held_out=held_out, method=METHOD, drop=[2, 3])
    found = refit_of(task, [2, 3])
    loss, unscaled = recorder.value("held_out_loss"), recorder.value("unscaled_held_out_loss")
    assert 0.5 < found.final_scale < 1 if takes else found.final_scale == 1
    assert loss < unscaled if takes else loss == unscaled
    operated = operate(tiny_model(BY_NAME[name]), found)
    assert mean_loss(operated, held_out) == pytest.approx(loss, rel=1e-4), "it is worth what was promised"


def test_no_point_is_taken_that_was_not_seen_to_be_better() -> None:
    assert least(lambda scale: -abs(scale - 0.95), known=-0.05) in (0.9, 1.0), "not a parabola: the best point seen"
    assert least(lambda scale: (scale - 0.97) ** 2, known=0.03**2) == pytest.approx(0.97)
    assert least(lambda _: 1.0, known=1.0) == 1.0


@torch.inference_mode()
def test_the_factor_of_the_final_norm_is_that_of_text_and_not_of_own_text() -> None:
    scales = []
    held_out = torch.cat([HELD_OUT[:4], token_ids(4, 24, seed=3)])  # nobody could foresee the last ones
    for other in ("text of somebody else", SELF_GENERATED):
        task, _ = make_task(tiny_model(), fit=FIT, held_out=held_out, method=METHOD, drop=[2, 3])
        sources = torch.tensor([0] * 4 + [1] * 4)
        text = replace(task.tokens, held_out_sources=sources, sources=("text", other))
        marked = replace(task.activations, text=text)
        scales.append(refit_of(replace(task, activations=marked), [2, 3]).final_scale)
    assert scales[1] > scales[0] + 0.02


@torch.inference_mode()
def test_held_out_tokens_judge_and_are_never_fitted() -> None:
    first, other = (
        make_task(tiny_model(), fit=FIT, held_out=held_out, method=METHOD, drop=[2, 3])[0]
        for held_out in (HELD_OUT, OWN_TEXT[40:48])
    )
    for one, same in zip(refit_of(first, [2, 3]).changes, refit_of(other, [2, 3]).changes, strict=True):
        assert torch.equal(one.change, same.change)


@torch.inference_mode()
def test_dense_streams_that_are_not_stored_are_run_to_the_same_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the batches that are fitted; no block runs for what is stored."""
    found = []
    for keep in (True, False):
        task, _ = make_task(tiny_model(), fit=FIT, held_out=HELD_OUT, method=METHOD, drop=[2, 4], keep=keep)
        monkeypatch.setattr("replaceme_core.engine.activations.capture.CHOICE_STREAM_BYTES", 0)
        activations = task.activations
        activations.capture()
        assert activations.complete is keep
        held_out = [number for number in activations.held_out_batches if number in activations.stored]
        runs = activations.dense_block_runs
        refit_without(task, [2, 4], fit=activations.stored[:1], judged=held_out)
        assert activations.dense_block_runs == runs
        fitted = refit_without(task, [2, 4], fit=activations.fit_batches, judged=held_out)
        found.append([one.change for one in fitted.pruning.changes])
        assert (activations.dense_block_runs > runs) is not keep
    assert all(torch.equal(one, same) for one, same in zip(*found, strict=True))


@torch.inference_mode()
def test_the_targets_of_one_block_at_a_time_are_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, advance_to, run = list[weakref.ref[torch.Tensor]](), Targets.advance_to, Activations.run

    def ran(activations: Activations, stream: torch.Tensor, *, since: int, until: int) -> torch.Tensor:
        assert all(earlier() is None for earlier in seen), "those of the block before are gone"
        return run(activations, stream, since=since, until=until)

    def noted(targets: Targets, until: int) -> None:
        advance_to(targets, until)
        seen.extend(weakref.ref(targets.between(batch)) for batch in targets.batches)

    monkeypatch.setattr(Activations, "run", ran)
    monkeypatch.setattr(Targets, "advance_to", noted)
    task, _ = make_task(tiny_model(), fit=FIT, held_out=HELD_OUT, method=METHOD, drop=[2, 4])
    refit_of(task, [2, 4])
    assert len(seen) > 1
