"""Parameters of neighbouring blocks are merged in every family whose blocks are of one kind."""

import pytest
import torch

from replaceme_core.engine.methods.merge import mergeable
from replaceme_core.engine.model.changes import windows
from replaceme_core.families.resolve import kind
from tests.fixtures.models.tasks import carry_out, make_task, operate
from tests.fixtures.models.tiny import BLOCKS, VARIANTS, Variant, tiny_model, token_ids

FIT, HELD_OUT = token_ids(6, 24, seed=1), token_ids(4, 24, seed=2)
METHOD = {"name": "merge"}


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_the_differences_of_all_parameters_are_added_to_the_anchor_block(variant: Variant) -> None:
    model, original = tiny_model(variant), tiny_model(variant)
    task, _ = make_task(model, remove=1, fit=FIT, held_out=HELD_OUT, method=METHOD)
    if not any(mergeable(task.block_runner.blocks, cut) for cut in windows(BLOCKS, 1)):
        assert "sliding" in str(kind(task.block_runner.blocks[1])), "a family of one kind of blocks can be merged"
        return
    pruning = carry_out(task)
    (removed,) = pruning.removed
    anchor, gone = (dict(task.block_runner.blocks[block].named_parameters()) for block in (removed - 1, removed))
    assert {change.parameter for change in pruning.changes} == set(anchor)
    result = operate(original, pruning)
    after = dict(make_task(result, fit=FIT, held_out=HELD_OUT)[0].block_runner.blocks[removed - 1].named_parameters())
    for name, parameter in after.items():  # of two blocks, the sum of differences is the second one itself
        torch.testing.assert_close(parameter, gone[name], rtol=1e-6, atol=1e-7)
