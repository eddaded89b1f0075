"""The attention of whole sequences in bfloat16 is that of torch's kernel, to the rounding of bfloat16."""

import pytest
import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from replaceme_core.engine.model import attention
from replaceme_core.engine.model.attention import attend


class Attention(nn.Module):
    num_key_value_groups = 2
    is_causal = True


def inputs(positions: int, *, dtype: torch.dtype = torch.bfloat16) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, heads, positions, 16, generator=generator).to(dtype) for heads in (4, 2, 2)]


def window(positions: int) -> torch.Tensor:
    return torch.ones(positions, positions, dtype=torch.bool).tril().triu(-20)[None, None].expand(3, 1, -1, -1)


@pytest.mark.parametrize("positions", [17, 128, 300])
@pytest.mark.parametrize("masked", [False, True])
def test_as_the_kernel(positions: int, masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    module, tensors = Attention(), inputs(positions)
    mask = window(positions) if masked else None
    wanted, _ = sdpa_attention_forward(module, *(one.float() for one in tensors), mask)
    monkeypatch.setattr(attention, "sdpa_attention_forward", None)  # nothing falls back to it
    found, _ = attend(module, *tensors, mask)
    assert found.shape == wanted.shape
    assert float((found.float() - wanted).norm() / wanted.norm()) < 0.005


def test_all_else_goes_to_the_kernel() -> None:
    module, (query, key, value) = Attention(), inputs(12)
    padding = torch.ones(3, 1, 12, 12, dtype=torch.bool).tril()
    padding[0, ..., :2] = False
    padding[..., range(12), range(12)] = True
    for tensors, mask in (
        ((query.float(), key.float(), value.float()), None),
        ((query[:, :, -1:], key, value), None),
        ((query, key, value), padding),
    ):
        wanted, _ = sdpa_attention_forward(module, *tensors, mask)
        assert torch.equal(attend(module, *tensors, mask)[0], wanted)
