"""A model read block by block is the model loaded whole, to the bit: what it computes, and what is saved of it."""

import gc
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from replaceme_core.engine.model.changes import Cut, FittedCut, fold, remove_blocks
from replaceme_core.engine.model.lazy_model import load_lazily
from replaceme_core.engine.model.load import load_model
from replaceme_core.engine.model.save import save_block_by_block, save_model
from replaceme_core.families.resolve import ResolvedModel, resolve
from tests.fixtures.models.quantized import GPT_OSS
from tests.fixtures.models.tiny import BLOCKS, VARIANTS, WIDTH, Variant, save_tiny, token_ids

CUT = FittedCut(cut=Cut(start=2, end=3), delta=torch.diag(torch.linspace(-0.4, 0.3, WIDTH, dtype=torch.float64)))


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda one: one.name)
@torch.inference_mode()
def test_it_computes_the_same(variant: Variant, tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source", variant=variant)
    whole = load_model(source, dtype=torch.float32, device="cpu")
    lazy = load_lazily(source, dtype=torch.float32, device="cpu")
    blocks = resolve(lazy).blocks
    assert all(parameter.is_meta for block in blocks for parameter in block.parameters())
    tokens = token_ids(2, 24)
    assert torch.equal(whole(input_ids=tokens).logits, lazy(input_ids=tokens).logits)
    in_memory = [index for index, block in enumerate(blocks) if not next(block.parameters()).is_meta]
    assert in_memory == [BLOCKS - 1], "one block at a time"
    assert dict(lazy.named_parameters()).keys() == dict(whole.named_parameters()).keys()


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda one: one.name)
@torch.inference_mode()
def test_the_same_is_saved(variant: Variant, tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source", variant=variant, dtype=torch.bfloat16)
    whole = load_model(source, dtype=torch.bfloat16, device="cpu")
    resolved = resolve(whole)
    fold(resolved, CUT)
    remove_blocks(resolved, list(CUT.cut.blocks))
    save_model(whole, tmp_path / "whole", source=source)

    def change(resolved: ResolvedModel, block: int) -> None:
        if block == CUT.cut.anchor:
            fold(resolved, CUT)

    (tmp_path / "parts").mkdir()
    lazy = load_lazily(source, dtype=torch.bfloat16, device="cpu")
    save_block_by_block(lazy, tmp_path / "parts", source=source, removed=list(CUT.cut.blocks), change=change)
    expected, found = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == names
    for name in names:
        if name != "model.safetensors":
            assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@pytest.mark.parametrize(
    ("variant", "dtype"),
    [
        (Variant(name="gptj", model_type="gptj", config={"rotary_dim": 4}), torch.bfloat16),  # a table of positions
        (GPT_OSS, torch.float16),  # norms that stay in float32
    ],
    ids=["gptj", "gpt-oss"],
)
@torch.inference_mode()
def test_it_computes_the_same_in_16_bits(variant: Variant, dtype: torch.dtype, tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source", variant=variant)
    whole, lazy = (load(source, dtype=dtype, device="cpu") for load in (load_model, load_lazily))
    dtypes = [{name: one.dtype for name, one in model.named_parameters()} for model in (whole, lazy)]
    assert dtypes[0] == dtypes[1]
    tokens = token_ids(2, 240)
    assert torch.equal(whole(input_ids=tokens).logits, lazy(input_ids=tokens).logits)


def test_a_model_that_is_no_longer_used_is_gone(tmp_path: Path) -> None:
    model = load_lazily(save_tiny(tmp_path / "source"), dtype=torch.float32, device="cpu")
    model(input_ids=token_ids(1, 8))
    watched = weakref.ref(model)
    del model
    gc.collect()
    assert watched() is None


def test_modules_made_afterwards_are_in_memory(tmp_path: Path) -> None:
    load_lazily(save_tiny(tmp_path / "source"), dtype=torch.float32, device="cpu")
    assert nn.Linear(2, 2).weight.device.type == "cpu"
