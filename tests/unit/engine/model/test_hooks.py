"""A replaced output or forward is restored, also where another library had replaced the forward before."""

import torch
from torch import nn

from replaceme_core.engine.model.block_runner import replace_forward


def test_a_module_computes_nothing_while_its_forward_is_replaced() -> None:
    module = nn.Linear(2, 2)
    given, own = torch.ones(1, 2), module(torch.ones(1, 2))
    with replace_forward(module, given):
        assert module(torch.zeros(3, 3, 3)) is given
    assert torch.equal(module(torch.ones(1, 2)), own)
    assert "forward" not in vars(module)


def test_a_forward_set_by_another_library_is_restored() -> None:
    module = nn.Linear(2, 2)
    vars(module)["forward"] = forward = lambda values: values + 1
    with replace_forward(module, torch.ones(1, 2)):
        pass
    assert vars(module)["forward"] is forward
    assert torch.equal(module(torch.zeros(1, 2)), torch.ones(1, 2))
