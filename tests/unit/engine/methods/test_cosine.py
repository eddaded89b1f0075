"""The map of least cosine loss: where it starts, what it streams, and that it is never worse than nothing."""

import pytest
import torch
from torch.utils.data import TensorDataset

from replaceme_core.engine.methods import cosine as module
from replaceme_core.engine.methods.cosine import COSINE_RATE, descend
from replaceme_core.engine.methods.least_squares import fit_cut
from replaceme_core.engine.methods.task import Task
from replaceme_core.engine.model.changes import Cut, FittedCut, run_pruned
from replaceme_core.engine.numerics.cosine import CosineFit, annealed, cosine_tokens
from tests.fixtures.models.activations import dense_pass
from tests.fixtures.models.tasks import OWN_TEXT, carry_out, make_task
from tests.fixtures.models.tiny import WIDTH, tiny_model

CUT = Cut(start=3, end=4)
START = FittedCut(cut=CUT, delta=torch.zeros(WIDTH, WIDTH, dtype=torch.float64))
DONE = [FittedCut(cut=Cut(start=1, end=1), delta=torch.eye(WIDTH, dtype=torch.float64) * 0.2)]


FIT, HELD_OUT = OWN_TEXT[:24], OWN_TEXT[40:]


def make(*, keep: bool = False, **fields: object) -> Task:
    return make_task(tiny_model(), fit=FIT, held_out=HELD_OUT, keep=keep, **fields)[0]


@torch.inference_mode()
def ends(task: Task, tokens: torch.Tensor, done: list[FittedCut]) -> TensorDataset:
    """What the descent works on, from plain passes."""
    block_runner = task.block_runner
    kept, write = run_pruned(block_runner, block_runner.enter(tokens), done=done, until=CUT.anchor)
    end = dense_pass(tiny_model(), tokens)[0][CUT.end + 1]
    return cosine_tokens(write.flatten(0, 1), kept.flatten(0, 1), end.flatten(0, 1), light=False)


@pytest.mark.parametrize("done", [[], DONE], ids=["dense prefix", "pruned prefix"])
@pytest.mark.parametrize("keep", [False, True])
@torch.inference_mode()
def test_each_step_takes_a_buffer_of_the_tokens_in_order(
    keep: bool, done: list[FittedCut], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a fixed size, over a share of the fit tokens."""
    monkeypatch.setattr(module, "BUFFER_TOKENS", 50)
    monkeypatch.setattr(module, "COSINE_SHARE", 0.3)
    task = make(keep=keep)
    if keep:
        task.activations.capture()
    found = descend(task.activations, START, done=done, diagonal=False, light=False)
    fit_tokens, held_out = ends(task, FIT, done), TensorDataset(*ends(task, HELD_OUT, done)[:50])
    fit = CosineFit(START.delta, diagonal=False)
    losses, order = [fit.loss(held_out)], torch.Generator().manual_seed(0)
    for step in range(3):
        some = TensorDataset(*fit_tokens[50 * step : 50 * (step + 1)])
        fit.epoch(some, rate=annealed(COSINE_RATE, done=step / 3), order=order)
        losses.append(fit.loss(held_out))
    assert (found.before, found.after) == pytest.approx((losses[0], min(losses)), rel=1e-4)


@pytest.mark.parametrize("light", [False, True])
def test_the_best_map_is_kept_the_first_one_included(light: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    task = make()
    with torch.inference_mode():
        found = descend(task.activations, START, done=[], diagonal=False, light=light)
        assert found.after < found.before
        monkeypatch.setattr(module, "COSINE_RATE", 1e3)  # every step leads astray
        lost = descend(task.activations, START, done=[], diagonal=False, light=light)
    assert not lost.after < lost.before
    assert lost.fitted is START
    assert lost.after == lost.before == found.before


def test_it_starts_from_least_squares_and_turns_further() -> None:
    task, recorder = make_task(tiny_model(), fit=FIT, held_out=HELD_OUT, method={"name": "cosine"})
    pruning = carry_out(task)
    same = carry_out(make())
    assert pruning.removed == same.removed, "the cut is chosen as least_squares chooses it"
    assert recorder.value("cosine_loss") < recorder.value("cosine_loss_before")
    assert not torch.equal(pruning.folds[0].delta, same.folds[0].delta)
    assert len(pruning.candidates) == len(same.candidates)


def test_runs_are_turned_in_order_on_the_pruned_prefix() -> None:
    task, recorder = make_task(
        tiny_model(), fit=FIT, held_out=HELD_OUT, drop=[1, 3, 4], method={"name": "cosine", "ridge": 0.1}
    )
    pruning = carry_out(task)
    assert [str(one.cut) for one in pruning.folds] == ["1-1", "3-4"]
    first, second = pruning.folds
    with torch.inference_mode():
        statistics = task.activations.statistics(second.cut, done=[first])
        start = fit_cut(statistics, ridge=0.1)
        again = descend(task.activations, start.from_fit_tokens, done=[first], diagonal=False, light=False)
    for name, value in (("cosine_loss_before", again.before), ("cosine_loss", again.after)):
        assert recorder.values(name)[1] == pytest.approx(value, rel=1e-5)
    # what the steps changed is added to the map that knows all tokens
    moved = start.from_all_tokens.delta + again.fitted.delta - start.from_fit_tokens.delta
    torch.testing.assert_close(second.delta, moved)


def test_the_light_form_is_another_map() -> None:
    maps = []
    for loss in ("exact", "light"):
        method = {"name": "cosine", "loss": loss, "ridge": 0.1}
        pruning = carry_out(make(drop=[3, 4], method=method))
        maps.append(pruning.folds[0].delta)
    assert not torch.equal(maps[0], maps[1])
