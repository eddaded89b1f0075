"""Influence against brute force, and what is removed for it."""

import pytest
import torch
from transformers import PreTrainedModel

from tests.fixtures.models.tasks import carry_out, make_task, mean_loss, operate
from tests.fixtures.models.tiny import BLOCKS, WIDTH, tiny_model, token_ids

FIT, HELD_OUT = token_ids(6, 24, seed=1), token_ids(4, 24, seed=2)
METHOD = {"name": "block_influence"}


@torch.inference_mode()
def influences(model: PreTrainedModel, tokens: torch.Tensor, *, ordinary: torch.Tensor | None = None) -> list[float]:
    """1 - mean cos across each block, from hooks on the model's own forward pass."""
    ends: list[torch.Tensor] = []
    starts: list[torch.Tensor] = []
    handles = []
    for block in model.model.layers:
        handles.append(
            block.register_forward_hook(
                lambda _m, inputs, output: (starts.append(inputs[0]), ends.append(output))[0]  # type: ignore[func-returns-value]
            )
        )
    model(input_ids=tokens)
    for handle in handles:
        handle.remove()
    found = []
    for start, end in zip(starts, ends, strict=True):
        cosine = torch.nn.functional.cosine_similarity(start.reshape(-1, WIDTH), end.reshape(-1, WIDTH))
        found.append(1 - float(cosine.mean() if ordinary is None else cosine[ordinary].mean()))
    return found


def test_the_blocks_of_least_influence_go_wherever_they_stand() -> None:
    model = tiny_model()
    expected = influences(model, torch.cat([FIT, HELD_OUT]))
    task, recorder = make_task(model, remove=3, fit=FIT, held_out=HELD_OUT, method=METHOD)
    pruning = carry_out(task)
    assert [row.start for row in pruning.candidates] == list(range(1, BLOCKS))
    for row in pruning.candidates:
        assert row.influence == pytest.approx(expected[row.start], rel=1e-4)
    assert list(pruning.removed) == sorted(sorted(range(1, BLOCKS), key=lambda block: expected[block])[:3])
    assert not pruning.folds
    assert not pruning.changes
    pruned = operate(tiny_model(), pruning)
    assert recorder.value("result_held_out_loss") == pytest.approx(mean_loss(pruned, HELD_OUT), rel=1e-5)


def test_block_0_stays_though_its_influence_is_least() -> None:
    model = tiny_model()
    with torch.no_grad():
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            model.model.layers[0].get_submodule(name).weight.mul_(1e-3)
    assert min(influences(model, FIT)) == influences(model, FIT)[0]
    assert 0 not in carry_out(make_task(model, remove=4, fit=FIT, held_out=HELD_OUT, method=METHOD)[0]).removed


def test_tokens_with_massive_activations_do_not_count() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.model.embed_tokens.weight[7].mul_(1e4)
    fit = FIT.clone()
    fit[:, 0] = 7
    ordinary = (torch.cat([fit, HELD_OUT]) != 7).flatten()
    expected = influences(model, torch.cat([fit, HELD_OUT]), ordinary=ordinary)
    pruning = carry_out(make_task(model, fit=fit, held_out=HELD_OUT, method=METHOD)[0])
    for row in pruning.candidates:
        assert row.influence == pytest.approx(expected[row.start], rel=1e-3)


def test_named_blocks_are_measured_and_go() -> None:
    expected = influences(tiny_model(), torch.cat([FIT, HELD_OUT]))
    pruning = carry_out(make_task(tiny_model(), fit=FIT, held_out=HELD_OUT, drop=[2, 4], method=METHOD)[0])
    assert list(pruning.removed) == [2, 4]
    assert [(row.start, row.chosen) for row in pruning.candidates] == [(2, True), (4, True)]
    assert pruning.candidates[1].influence == pytest.approx(expected[4], rel=1e-4)
