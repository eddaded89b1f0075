"""What the reference implementation would do, by its own formulas."""

import pytest
import torch

from replaceme_core.engine.model.block_runner import Hook, record_values
from replaceme_core.errors import NumericalFailure
from tests.fixtures.models.tasks import carry_out, make_task
from tests.fixtures.models.tiny import BLOCKS, WIDTH, tiny_model, token_ids

FIT, HELD_OUT = token_ids(6, 24, seed=1), token_ids(4, 24, seed=2)
METHOD = {"as_published": True}


@torch.inference_mode()
def hidden_states() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """After every block, and what every MLP writes, (sequences, positions, d), from one forward pass of the model."""
    model, streams, writes = tiny_model(), [], []
    hooks = [(record_values(Hook(module=block)), record_values(Hook(module=block.mlp))) for block in model.model.layers]
    for one in hooks:
        streams.append(one[0].__enter__())
        writes.append(one[1].__enter__())
    model(input_ids=torch.cat([FIT, HELD_OUT]))
    for one in hooks:
        one[0].__exit__(None, None, None)
        one[1].__exit__(None, None, None)
    return [seen[0] for seen in streams], [seen[0] for seen in writes]


def test_the_last_token_chooses() -> None:
    streams, _ = hidden_states()
    distances = {}
    for start in range(1, BLOCKS - 1):
        ends = streams[start - 1][:, -1], streams[start + 1][:, -1]
        distances[start] = float((torch.nn.functional.cosine_similarity(*ends).arccos() / torch.pi).mean())
    pruning = carry_out(make_task(tiny_model(), fit=FIT, held_out=HELD_OUT, method=METHOD)[0])
    for row in pruning.candidates:
        assert row.distance == pytest.approx(distances[row.start], rel=1e-4)
    assert pruning.removed[0] == min(distances, key=lambda start: distances[start])


@pytest.mark.parametrize("ridge", [None, 0.0, 50.0])
def test_the_map_is_that_of_the_reference_on_the_dense_model(ridge: float | None) -> None:
    streams, writes = hidden_states()
    method = METHOD if ridge is None else {**METHOD, "ridge": ridge}
    pruning = carry_out(make_task(tiny_model(), fit=FIT, held_out=HELD_OUT, drop=[1, 3, 4], method=method)[0])
    for fold, (anchor, end) in zip(pruning.folds, [(0, 1), (2, 4)], strict=True):
        a1 = writes[anchor].reshape(-1, WIDTH).double()
        a2 = streams[end].reshape(-1, WIDTH).double() + a1 - streams[anchor].reshape(-1, WIDTH).double()
        system = a1.T @ a1 + (ridge or 0.0) * torch.eye(WIDTH, dtype=torch.float64)
        expected = torch.linalg.inv(system) @ a1.T @ a2
        torch.testing.assert_close(fold.delta + torch.eye(WIDTH, dtype=torch.float64), expected, rtol=1e-3, atol=1e-3)


def test_a_singular_system_is_an_error_and_no_map() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3] = 0
    with pytest.raises(NumericalFailure, match="give a ridge"):
        carry_out(make_task(model, fit=FIT, held_out=HELD_OUT, drop=[2], method=METHOD)[0])
