"""A fit is never worse than plain removal of the same blocks, on any window, whatever the family takes over."""

import pytest
import torch

from replaceme_core.engine.methods.task import Pruning
from replaceme_core.engine.model.changes import windows
from tests.fixtures.models.tasks import carry_out, make_task, mean_loss, operate, sampled
from tests.fixtures.models.tiny import BLOCKS, VARIANTS, tiny_model


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("least_squares", "llama"),
        ("least_squares", "gemma3"),
        ("least_squares", "qwen3-moe"),
        ("cosine", "llama"),
        ("cosine", "gemma3"),
    ],
)
def test_never_worse_than_plain_removal_on_any_window(method: str, name: str) -> None:
    variant = next(one for one in VARIANTS if one.name == name)
    fit, held_out = (sampled(tiny_model(variant), count, 24, seed=count) for count in (24, 32))
    earned = 0
    for cut in windows(BLOCKS, 2):
        fields = {"drop": list(cut.blocks), "method": {"name": method}}
        pruning = carry_out(make_task(tiny_model(variant), fit=fit, held_out=held_out, **fields)[0])
        (row,) = pruning.candidates
        loss = mean_loss(operate(tiny_model(variant), pruning), held_out)
        plain = mean_loss(operate(tiny_model(variant), Pruning(removed=pruning.removed)), held_out)
        assert row.plain_loss == pytest.approx(plain, rel=0.02)  # exactly, but where half of the tokens left no doubt
        assert loss <= plain * 1.0001
        earned += bool(row.scale)
        if name == "gemma3":
            delta = pruning.folds[0].delta
            assert torch.equal(delta, delta.diagonal().diag())
    assert earned or name == "gemma3", "no map was good for anything: the test shows nothing"
