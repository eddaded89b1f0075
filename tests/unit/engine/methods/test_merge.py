"""Merged parameters against the definition, which blocks may be merged, and the window that is chosen."""

import pytest
import torch

from replaceme_core.engine.model.changes import windows
from replaceme_core.errors import InvalidInput
from replaceme_core.families.resolve import kind
from tests.fixtures.models.tasks import carry_out, make_task, mean_loss, operate, sampled
from tests.fixtures.models.tiny import BLOCKS, VARIANTS, Variant, tiny_model, token_ids

FIT, HELD_OUT = token_ids(6, 24, seed=1), token_ids(4, 24, seed=2)
METHOD = {"name": "merge"}


def variant(name: str) -> Variant:
    return next(one for one in VARIANTS if one.name == name)


def test_several_blocks_and_several_runs() -> None:
    pruning = carry_out(make_task(tiny_model(), fit=FIT, held_out=HELD_OUT, drop=[1, 3, 4], method=METHOD)[0])
    blocks = tiny_model().model.layers
    result = operate(tiny_model(), pruning)
    for new, (anchor, gone) in enumerate([(0, [1]), (2, [3, 4])]):
        theta = [block.mlp.up_proj.weight.double() for block in blocks]
        expected = theta[anchor] + sum(theta[block] - theta[anchor] for block in gone)
        torch.testing.assert_close(result.model.layers[new].mlp.up_proj.weight.double(), expected, rtol=1e-5, atol=1e-6)


def test_the_window_of_least_loss_is_chosen() -> None:
    model = tiny_model()
    fit, held_out = sampled(model, 6, 24, seed=1), sampled(model, 1, 24, seed=2)
    method = {**METHOD, "replays": 9}
    pruning = carry_out(make_task(model, remove=2, fit=fit, held_out=held_out, method=method)[0])
    losses = {}
    for cut in windows(BLOCKS, 2):
        task, recorder = make_task(tiny_model(), fit=fit, held_out=held_out, drop=list(cut.blocks), method=METHOD)
        losses[cut] = mean_loss(operate(tiny_model(), carry_out(task)), held_out)
        assert recorder.value("result_held_out_loss") == pytest.approx(losses[cut], rel=1e-4)
    for row in pruning.candidates:
        assert row.held_out_loss == pytest.approx(losses[row.cut], rel=1e-4)
    (chosen,) = (row for row in pruning.candidates if row.chosen)
    assert losses[chosen.cut] == min(losses.values())


def test_the_screen_is_by_distance() -> None:
    method = {**METHOD, "replays": 2}
    pruning = carry_out(make_task(tiny_model(), remove=2, fit=FIT, held_out=HELD_OUT, method=method)[0])
    near = sorted(pruning.candidates, key=lambda row: row.distance or 0.0)
    assert [row.held_out_loss is not None for row in near] == [True, True, False, False]


def test_blocks_of_different_kinds_are_not_merged() -> None:
    mixed = variant("qwen3-moe-mixed")  # experts in blocks 1 and 3, dense otherwise, sliding from block 3 on
    with pytest.raises(InvalidInput, match="blocks 1 to 2 are not of one kind") as caught:
        carry_out(make_task(tiny_model(mixed), fit=FIT, held_out=HELD_OUT, drop=[2], method=METHOD)[0])
    assert caught.value.field == "drop"
    pruning = carry_out(make_task(tiny_model(mixed), remove=1, fit=FIT, held_out=HELD_OUT, method=METHOD)[0])
    assert [row.start for row in pruning.candidates] == [5], "4 and 5 are both dense and sliding"
    with pytest.raises(InvalidInput, match="no 4 neighbouring blocks"):
        carry_out(make_task(tiny_model(mixed), remove=3, fit=FIT, held_out=HELD_OUT, method=METHOD)[0])


@pytest.mark.parametrize(
    ("name", "kinds"),
    [("llama", 1), ("gpt2", 1), ("falcon-7b", 1), ("gemma2", 2), ("smollm3", 2), ("qwen2-sliding", 2)],
)
def test_kinds_tell_what_differs_and_nothing_else(name: str, kinds: int) -> None:
    model = tiny_model(variant(name))
    task, _ = make_task(model, fit=FIT, held_out=HELD_OUT)
    assert len({kind(block) for block in task.block_runner.blocks}) == kinds
