"""The map of least cosine loss: where it starts, what it streams, and that it is never worse than nothing."""

import pytest
import torch

from replaceme_core.engine.methods import cosine as module
from replaceme_core.engine.methods.cosine import descend
from replaceme_core.engine.methods.task import Task
from replaceme_core.engine.methods.windows import fit_cut
from replaceme_core.engine.model.changes import Cut, FittedCut, run_pruned
from tests.fixtures.models.tasks import carry_out, make_task, sampled
from tests.fixtures.models.tiny import WIDTH, tiny_model

CUT = Cut(start=3, end=4)
DONE = [FittedCut(cut=Cut(start=1, end=1), delta=torch.eye(WIDTH, dtype=torch.float64) * 0.2)]


@pytest.fixture(scope="module")
def texts() -> tuple[torch.Tensor, torch.Tensor]:
    """Fit and held-out tokens that the model itself has written."""
    return sampled(tiny_model(), 24, 24, seed=1), sampled(tiny_model(), 16, 24, seed=2)


def make(texts: tuple[torch.Tensor, torch.Tensor], *, keep: bool = False, **fields: object) -> Task:
    return make_task(tiny_model(), fit=texts[0], held_out=texts[1], keep=keep, **fields)[0]


@torch.inference_mode()
def ends(task: Task, tokens: torch.Tensor, done: list[FittedCut]) -> dict[str, torch.Tensor]:
    """What `turn` works on, from plain passes."""
    block_runner = task.block_runner
    kept, write = run_pruned(block_runner, block_runner.enter(tokens), done=done, until=CUT.anchor)
    end = block_runner.enter(tokens)
    for block in range(CUT.end + 1):
        end = block_runner.run(block, end)
    return {name: one.flatten(0, 1) for name, one in (("write", write), ("kept", kept), ("end", end))}


@pytest.mark.parametrize("done", [[], DONE], ids=["dense prefix", "pruned prefix"])
@pytest.mark.parametrize("keep", [False, True])
def test_buffers_are_of_a_fixed_size_and_hold_the_tokens_in_order(
    texts: tuple[torch.Tensor, torch.Tensor], keep: bool, done: list[FittedCut], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BUFFER_TOKENS", 50)
    task = make(texts, keep=keep)
    with torch.inference_mode():
        if keep:
            task.activations.capture()
        activations = task.activations
        buffers = list(module._buffers(activations, activations.fit_batches, CUT, dict, done=done, limit=10**9))
        first = list(module._buffers(activations, activations.fit_batches, CUT, dict, done=done, limit=120))
    sizes = [len(buffer["write"]) for buffer in buffers]
    assert sizes[:-1] == [50] * (len(sizes) - 1)
    assert sum(sizes) == texts[0].numel()
    assert [len(buffer["write"]) for buffer in first] == [50, 50, 20]
    expected = ends(task, texts[0], done)
    for name, values in expected.items():
        together = torch.cat([buffer[name] for buffer in buffers])
        torch.testing.assert_close(together, values, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("light", [False, True])
def test_the_best_map_is_kept_the_first_one_included(
    texts: tuple[torch.Tensor, torch.Tensor], light: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = FittedCut(cut=CUT, delta=torch.zeros(WIDTH, WIDTH, dtype=torch.float64))
    task = make(texts)
    with torch.inference_mode():
        found = descend(task.activations, start, done=[], diagonal=False, light=light)
        assert found.after < found.before
        monkeypatch.setattr(module, "COSINE_RATE", 1e3)  # every step leads astray
        lost = descend(task.activations, start, done=[], diagonal=False, light=light)
    assert not lost.after < lost.before
    assert lost.fitted is start
    assert lost.after == lost.before == found.before


def test_it_starts_from_least_squares_and_turns_further(texts: tuple[torch.Tensor, torch.Tensor]) -> None:
    task, recorder = make_task(tiny_model(), fit=texts[0], held_out=texts[1], method={"name": "cosine"})
    pruning = carry_out(task)
    same = carry_out(make(texts))
    assert pruning.removed == same.removed, "the cut is chosen as least_squares chooses it"
    assert recorder.value("cosine_loss") < recorder.value("cosine_loss_before")
    assert not torch.equal(pruning.folds[0].delta, same.folds[0].delta)
    assert len(pruning.candidates) == len(same.candidates)


def test_runs_are_turned_in_order_on_the_pruned_prefix(texts: tuple[torch.Tensor, torch.Tensor]) -> None:
    task, recorder = make_task(
        tiny_model(), fit=texts[0], held_out=texts[1], drop=[1, 3, 4], method={"name": "cosine", "ridge": 0.1}
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


def test_the_light_form_is_another_map(texts: tuple[torch.Tensor, torch.Tensor]) -> None:
    maps = []
    for loss in ("exact", "light"):
        method = {"name": "cosine", "loss": loss, "ridge": 0.1}
        pruning = carry_out(make(texts, drop=[3, 4], method=method))
        maps.append(pruning.folds[0].delta)
    assert not torch.equal(maps[0], maps[1])
