"""Sets of blocks that may go: which are looked at, by what, and on how much of the text."""

import math
from collections.abc import Collection

import pytest
import torch

from replaceme_core.engine.activations.tensor_store import activation_bytes
from replaceme_core.engine.methods.candidates import MappedSets, search, stored
from replaceme_core.engine.methods.panel import variant_losses
from replaceme_core.engine.methods.task import Task
from replaceme_core.engine.methods.windows import Tried, fit_on_fit_tokens
from replaceme_core.engine.model.changes import Cut, Variant, runs
from replaceme_core.errors import CalibrationTooSmall
from tests.fixtures.models.recorder import Recorder
from tests.fixtures.models.tasks import carry_out, make_task, sampled
from tests.fixtures.models.tiny import BLOCKS, tiny_model

FIT, HELD_OUT = sampled(tiny_model(), 16, 24, seed=1), sampled(tiny_model(), 8, 24, seed=2)
METHOD = {"name": "refit", "ridge": 1e-2, "ridge_later": 0.1}


def task_of(remove: int = 2, *, blocks: int = BLOCKS, method: dict[str, object] | None = None) -> tuple[Task, Recorder]:
    model = tiny_model(num_hidden_layers=blocks)
    return make_task(model, remove=remove, fit=FIT, held_out=HELD_OUT, method=method or {"name": "auto"})


@torch.inference_mode()
@pytest.mark.parametrize(("blocks", "remove"), [(6, 1), (6, 3), (9, 8), (2, 1)])
def test_as_many_blocks_go_as_are_asked_for_in_at_most_two_runs(blocks: int, remove: int) -> None:
    with stored(task_of(remove, blocks=blocks)[0]) as task:
        found = search(task)
    for cuts, one in found.tried.items():
        assert sum(len(cut.blocks) for cut in cuts) == remove
        assert len(cuts) <= 2
        assert [row.cut for row in one.rows] == list(cuts)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("cheap", "removed"),
    [
        (range(4, 10), "4-9"),  # one run
        ((2, 3, 4, 9, 10, 11), "2-4,9-11"),  # two of even length
        ((2, 3, 4, 5, 9, 10), "2-5,9-10"),  # a move of an end away from these
    ],
)
def test_the_set_that_costs_least_is_found(
    monkeypatch: pytest.MonkeyPatch, cheap: Collection[int], removed: str
) -> None:
    """Residual and loss are the number of removed blocks that are not `cheap`."""

    def cost(blocks: Collection[int]) -> float:
        return sum(block not in cheap for block in blocks)

    def mean(sets: MappedSets, blocks: Collection[int]) -> float:
        cuts = tuple(runs(sorted(blocks)))
        sets.tried[cuts] = Tried(losses=[1 + cost(blocks)] * len(sets.judging), rows=[])
        return cost(blocks)

    monkeypatch.setattr(MappedSets, "residual", lambda _, cut: cost(cut.blocks))
    monkeypatch.setattr(MappedSets, "mean", mean)
    with stored(task_of(6, blocks=18)[0]) as task:
        assert ",".join(map(str, search(task).best)) == removed


@torch.inference_mode()
def test_maps_are_fitted_on_a_part_and_judged_on_half_of_the_panel() -> None:
    with stored(task_of()[0]) as task:
        sets = MappedSets(task=task)
        cut = Cut(start=2, end=3)
        assert sets.judging == list(task.activations.held_out_batches)[::2]
        statistics = task.activations.statistics(cut, numbers=sets.numbers)
        assert statistics.fit.tokens < FIT.numel()
        variant = Variant.of([fit_on_fit_tokens(statistics, ridge=None).fitted])
        losses = variant_losses(task.activations, variant, numbers=sets.judging)
        assert sets.mean([2, 3]) == pytest.approx(sets.panel.mean(losses))


def room_for(monkeypatch: pytest.MonkeyPatch, task: Task, *, sequences: int) -> None:
    size = activation_bytes(task.block_runner, tokens=sequences * task.tokens.fit.shape[1])
    monkeypatch.setattr("replaceme_core.engine.methods.candidates.CHOICE_STREAM_BYTES", size)


@torch.inference_mode()
def test_as_many_sequences_as_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    task, _ = task_of()
    for room, kept in ((math.inf, 16), (24, 16), (12, 4)):
        if room < math.inf:
            room_for(monkeypatch, task, sequences=int(room))
        with stored(task_of()[0]) as part:
            assert torch.equal(part.tokens.fit, FIT[:kept])
            assert torch.equal(part.tokens.held_out, HELD_OUT)
            assert part.activations.complete
    short, _ = make_task(tiny_model(), fit=FIT[:, :8], held_out=HELD_OUT[:, :8], method={"name": "auto"})
    room_for(monkeypatch, short, sequences=0)
    with pytest.raises(CalibrationTooSmall), stored(short):  # one sequence is less than the width of 16
        pass


def test_blocks_are_chosen_on_the_part_and_refitted_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    task, recorder = task_of(method=METHOD)
    room_for(monkeypatch, task, sequences=12)
    found = carry_out(task)
    assert recorder.value("choice_tokens") == 12 * 24
    assert not task.activations.complete, "the streams of all tokens are nowhere"
    named, _ = make_task(tiny_model(), fit=FIT, held_out=HELD_OUT, method=METHOD, drop=list(found.removed))
    assert found.changes
    for one, other in zip(found.changes, carry_out(named).changes, strict=True):
        assert torch.equal(one.change, other.change)
    assert task.activations.dense_block_runs > named.activations.dense_block_runs >= BLOCKS, "of the part as well"
