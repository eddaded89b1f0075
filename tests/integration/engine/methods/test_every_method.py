"""What holds for all methods alike."""

import json
import math
from functools import cache

import pytest
import torch

from replaceme_core.engine.methods.task import Candidate, Pruning, Task
from replaceme_core.engine.model.changes import Cut
from replaceme_core.errors import InvalidInput
from replaceme_core.request.method import Method
from replaceme_core.runner.messages import Stage
from tests.fixtures.models.tasks import carry_out, make_task, mean_loss, operate
from tests.fixtures.models.tiny import BLOCKS, BY_NAME, tiny_model, token_ids

FIT, HELD_OUT = token_ids(8, 24, seed=1), token_ids(4, 24, seed=2)
every_method = pytest.mark.parametrize("method", [str(method) for method in Method])


@every_method
def test_as_many_blocks_go_as_are_wanted_and_the_model_is_left_as_it_was(method: str) -> None:
    variant = BY_NAME["gemma3"]
    model = tiny_model(variant)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    task, recorder = make_task(model, remove=2, fit=FIT, held_out=HELD_OUT, method={"name": method})
    pruning = carry_out(task)
    assert len(set(pruning.removed)) == 2
    assert list(pruning.removed) == sorted(pruning.removed)
    assert 0 not in pruning.removed
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert len(task.block_runner.resolved.blocks) == BLOCKS
    assert {one.cut.start for one in pruning.candidates if one.chosen} <= set(pruning.removed)
    for stage in set(recorder.stages):
        fractions = [fraction for at, fraction in recorder.fractions if at is stage]
        assert fractions == sorted(fractions)
        assert all(0 <= fraction <= 1 for fraction in fractions)
    loss = mean_loss(operate(tiny_model(variant), pruning), HELD_OUT)
    assert loss == loss, "not a number"


@every_method
def test_named_blocks_go(method: str) -> None:
    task, recorder = make_task(tiny_model(), fit=FIT, held_out=HELD_OUT, drop=[1, 3, 4], method={"name": method})
    pruning = carry_out(task)
    assert list(pruning.removed) == [1, 3, 4]
    assert recorder.stages[0] is Stage.CALIBRATE
    assert recorder.stages[-1] is Stage.SOLVE


@cache
def answered(method: str, *, keep: bool) -> tuple[Pruning, Task]:
    task, _ = make_task(tiny_model(), fit=FIT, held_out=HELD_OUT, keep=keep, method={"name": method})
    return carry_out(task), task


@every_method
def test_kept_streams_change_nothing_but_the_number_of_passes(method: str) -> None:
    (without, _), (kept, task) = answered(method, keep=False), answered(method, keep=True)
    assert without.removed == kept.removed
    for one, other in zip(without.candidates, kept.candidates, strict=True):
        for name in ("distance", "influence", "residual", "held_out_loss"):
            if getattr(one, name) is not None:
                assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-5), name
    assert task.activations.dense_block_runs <= BLOCKS * len(task.activations.batches)


def test_a_value_that_is_not_finite_is_not_known() -> None:
    row = Candidate(cut=Cut(start=2, end=4), distance=math.nan, residual=math.inf, held_out_loss=3.5, chosen=True)
    shown = json.loads(json.dumps(row.as_dict(), allow_nan=False))
    assert (shown["distance"], shown["residual"], shown["held_out_loss"]) == (None, None, 3.5)
    assert (shown["start"], shown["end"], shown["chosen"]) == (2, 4, True)


@pytest.mark.parametrize(
    "method", [*({"name": str(method)} for method in Method), {"name": "least_squares", "as_published": True}], ids=str
)
def test_more_blocks_than_may_go_are_refused(method: dict[str, object]) -> None:
    """As an error of the request: a search for the deepest cut then tries fewer."""
    task, _ = make_task(tiny_model(), remove=4, fit=FIT, held_out=HELD_OUT, method=method)
    task.activations.may_go = lambda blocks: not {1, 2}.intersection(blocks)
    with pytest.raises(InvalidInput, match="remove fewer"):
        carry_out(task)
