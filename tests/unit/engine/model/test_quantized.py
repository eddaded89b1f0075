"""Blocks in 4 or 8 bits: what is captured on them, and what may be asked of them."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from replaceme_core.engine.model.block_runner import BlockRunner
from replaceme_core.engine.model.lazy_model import open_for_capture
from replaceme_core.engine.model.load import load_model
from replaceme_core.errors import InvalidInput
from replaceme_core.families.resolve import resolve
from replaceme_core.request.spec import ComputeSpec, Loading, Quantization
from tests.fixtures.models.tiny import VARIANTS, Variant, save_tiny, token_ids

LARGE_ENOUGH = {"hidden_size": 64, "intermediate_size": 128}


def compute(quantization: Quantization | None) -> ComputeSpec:
    return ComputeSpec(device="cpu", dtype="float32", loading=Loading.WHOLE, quantization=quantization)


def variant(family: str) -> Variant:
    return next(one for one in VARIANTS if one.model_type == family)


@pytest.mark.parametrize(("quantization", "error"), [(Quantization.FOUR_BITS, 0.5), (Quantization.EIGHT_BITS, 0.05)])
def test_the_blocks_hold_fewer_bits_and_do_nearly_the_same(
    tmp_path: Path, quantization: Quantization, error: float
) -> None:
    directory = save_tiny(tmp_path / "model", **LARGE_ENOUGH)
    full = load_model(directory, dtype=torch.float32, device="cpu")
    model = open_for_capture(directory, dtype=torch.float32, compute=compute(quantization))
    assert not [module for module in resolve(model).blocks.modules() if type(module) is nn.Linear]
    held, whole = (sum(each.nbytes for each in resolve(one).blocks.parameters()) for one in (model, full))
    assert held < 0.35 * whole, "of float32, in which a block of this size has large norms and scales"
    ids = token_ids(2, 24)
    with torch.inference_mode():
        runners = [BlockRunner(resolved=resolve(one)) for one in (model, full)]
        runners[0].prove(ids)
        streams = [runner.run(0, runner.enter(ids)) for runner in runners]
    difference = float((streams[0] - streams[1]).norm() / streams[1].norm())
    assert 0 < difference < error


def test_full_weights_unless_asked_otherwise(tmp_path: Path) -> None:
    model = open_for_capture(save_tiny(tmp_path / "model"), dtype=torch.float32, compute=compute(None))
    assert any(type(module) is nn.Linear for module in resolve(model).blocks.modules())


@pytest.mark.parametrize("family", ["gpt2", "mixtral"])
def test_a_family_whose_weights_are_not_in_linear_layers(tmp_path: Path, family: str) -> None:
    directory = save_tiny(tmp_path / "model", variant=variant(family))
    with pytest.raises(InvalidInput, match=r"leave compute\.quantization out") as caught:
        open_for_capture(directory, dtype=torch.float32, compute=compute(Quantization.FOUR_BITS))
    assert caught.value.field == "compute.quantization"


def test_without_the_library_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(InvalidInput, match=r"install replaceme\[quantized\]"):
        open_for_capture(tmp_path, dtype=torch.float32, compute=compute(Quantization.EIGHT_BITS))
