"""Sets of blocks that may go: which are looked at, by what, and on how much of the text."""

from collections.abc import Collection
from itertools import combinations, pairwise

import pytest
import torch

from replaceme_core.engine.activations.tensor_store import activation_bytes
from replaceme_core.engine.methods.candidates import (
    WELL_DETERMINED,
    MappedSets,
    RidgeFit,
    best_sets,
    blocks_of,
    first_lap,
    rank,
    search,
    store_streams,
)
from replaceme_core.engine.methods.panel import variant_losses
from replaceme_core.engine.methods.task import Task
from replaceme_core.engine.model.changes import Cut, Variant, runs, windows
from tests.fixtures.models.recorder import Recorder
from tests.fixtures.models.tasks import OWN_TEXT, carry_out, make_task
from tests.fixtures.models.tiny import BLOCKS, WIDTH, tiny_model

FIT, HELD_OUT = OWN_TEXT[:16], OWN_TEXT[48:]
METHOD = {"name": "refit", "ridge": 1e-2, "ridge_later": 0.1}


def task_of(remove: int = 2, *, blocks: int = BLOCKS, method: dict[str, object] | None = None) -> tuple[Task, Recorder]:
    model = tiny_model(num_hidden_layers=blocks)
    return make_task(model, remove=remove, fit=FIT, held_out=HELD_OUT, method=method or {"name": "auto"})


@torch.inference_mode()
@pytest.mark.parametrize(("blocks", "remove"), [(6, 1), (6, 3), (9, 8), (2, 1)])
def test_as_many_blocks_go_as_are_asked_for_in_at_most_two_runs(blocks: int, remove: int) -> None:
    found = search(task_of(remove, blocks=blocks)[0])
    for removed in found.tried:
        assert len(set(removed)) == remove
        assert len(runs(removed)) <= 2
        assert [row.cut for row in found.rows_of(removed)] == runs(removed)


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
        sets.tried[tuple(sorted(blocks))] = {}
        return cost(blocks)

    monkeypatch.setattr(MappedSets, "residual", lambda _, cut: cost(cut.blocks))
    monkeypatch.setattr(MappedSets, "mean", mean)
    assert ",".join(map(str, runs(search(task_of(6, blocks=18)[0]).best))) == removed


@torch.inference_mode()
def test_runs_that_go_together_are_of_even_length() -> None:
    found = rank(task_of(4, blocks=9)[0], groups=2)
    assert {tuple(sorted(len(run.blocks) for run in runs(removed))) for removed in found.tried} == {(2, 2)}


@torch.inference_mode()
def test_maps_are_fitted_on_a_part_and_judged_on_half_of_the_panel() -> None:
    task, _ = task_of()
    sets, cut = MappedSets(task=task), Cut(start=2, end=3)
    assert list(sets.panel.batches) == list(task.activations.held_out_batches)[::2]
    statistics = task.activations.statistics(cut, numbers=sets.numbers)
    assert statistics.fit.tokens < FIT.numel()
    assert statistics.held_out.tokens == HELD_OUT.numel() // 2
    variant = Variant.of([RidgeFit.of(statistics, ridge=None).from_fit_tokens])
    losses = variant_losses(task.activations, variant, numbers=sets.panel.batches)
    assert sets.mean([2, 3]) == pytest.approx(sets.panel.mean(losses))


@torch.inference_mode()
def test_the_part_is_an_eighth_that_determines_a_map() -> None:
    fit, held_out = FIT[:, :8], HELD_OUT[:, :8]
    small, _ = make_task(tiny_model(), fit=fit, held_out=held_out, method={"name": "auto"})
    store_streams(small)
    batch = small.activations.batches[0].tokens.numel()
    assert batch < WELL_DETERMINED * WIDTH <= batch * len(first_lap(small)) < fit.numel()
    fit = FIT.repeat(16, 1)
    large, _ = make_task(tiny_model(), fit=fit, held_out=HELD_OUT, method={"name": "auto"})
    store_streams(large)
    assert len(first_lap(large)) == len(large.activations.fit_batches) // 8


def room_for(monkeypatch: pytest.MonkeyPatch, task: Task, *, sequences: int) -> None:
    size = activation_bytes(task.block_runner, tokens=sequences * task.tokens.fit.shape[1])
    monkeypatch.setattr("replaceme_core.engine.activations.capture.CHOICE_STREAM_BYTES", size)


def test_blocks_are_chosen_on_the_part_that_there_is_room_for_and_refitted_on_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task, recorder = task_of(method=METHOD)
    room_for(monkeypatch, task, sequences=12)
    found = carry_out(task)
    assert recorder.value("choice_tokens") == 12 * 24
    fit, held_out = (
        sum(len(task.activations.batches[number].tokens) for number in task.activations.stored if number in numbers)
        for numbers in (task.activations.fit_batches, task.activations.held_out_batches)
    )
    assert (fit, held_out) == (8, 4), "half of both"
    named, _ = make_task(tiny_model(), fit=FIT, held_out=HELD_OUT, method=METHOD, drop=list(found.removed))
    assert found.changes
    for one, other in zip(found.changes, carry_out(named).changes, strict=True):
        assert torch.equal(one.change, other.change)
    assert task.activations.dense_block_runs > named.activations.dense_block_runs >= BLOCKS, "of the part as well"


def every_set(cuts: list[Cut], *, groups: int, remove: int) -> list[tuple[Cut, ...]]:
    """By trying all."""
    return [
        several
        for several in combinations(sorted(cuts), groups)
        if sum(len(cut.blocks) for cut in several) == remove
        and all(before.end < after.anchor for before, after in pairwise(several))
    ]


@pytest.mark.parametrize(("groups", "remove"), [(2, 5), (3, 4)])
def test_the_best_sets_are_those_of_least_summed_residual(groups: int, remove: int) -> None:
    cuts = [cut for length in (1, 2, 3) for cut in windows(10, length)]
    values = torch.rand(len(cuts), generator=torch.Generator().manual_seed(groups)).tolist()
    residuals = dict(zip(cuts, values, strict=True))
    expected = sorted(
        every_set(cuts, groups=groups, remove=remove), key=lambda several: sum(residuals[cut] for cut in several)
    )
    assert best_sets(residuals, groups=groups, remove=remove, most=4) == [blocks_of(one) for one in expected[:4]]
