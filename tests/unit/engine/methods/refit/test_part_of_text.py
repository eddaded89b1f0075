"""Blocks are chosen on a part of the text where the streams of all of it would be too many to keep."""

import pytest
import torch

from replaceme_core.engine.activations.cut_sums import Batch
from replaceme_core.engine.activations.tensor_store import activation_bytes
from replaceme_core.engine.methods.refit_choice import batches_for_choice, for_choice, keeps_all
from replaceme_core.engine.methods.task import Task
from replaceme_core.errors import CalibrationTooSmall
from tests.fixtures.models.recorder import Recorder
from tests.fixtures.models.tasks import carry_out, make_task, mean_loss, operate, sampled
from tests.fixtures.models.tiny import tiny_model

FIT, HELD_OUT = sampled(tiny_model(), 16, 24, seed=1), sampled(tiny_model(), 8, 24, seed=2)


def task_of(method: dict[str, object]) -> tuple[Task, Recorder]:
    return make_task(tiny_model(), remove=2, fit=FIT, held_out=HELD_OUT, method=method)


def room_for(monkeypatch: pytest.MonkeyPatch, task: Task, *, sequences: int) -> None:
    size = activation_bytes(task.block_runner, tokens=sequences * FIT.shape[1])
    monkeypatch.setattr("replaceme_core.engine.methods.refit_choice.STREAM_BYTES", size)


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
