"""The rows of the table on the inputs of blocks and on the final norm, checked on live models."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from replaceme_core.engine.model.block_runner import BlockRunner, Hook, record_values
from replaceme_core.engine.model.changes import scale_final_norm
from replaceme_core.errors import UnsupportedFamily
from replaceme_core.families.layout import FAMILIES, Layout, Weight
from replaceme_core.families.resolve import ResolvedModel, resolve
from tests.fixtures.models.activations import dense_pass
from tests.fixtures.models.tiny import VARIANTS, Variant, tiny_model, token_ids

every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)


@every_variant
@torch.inference_mode()
def test_the_named_parameters_are_all_that_read_the_stream(variant: Variant) -> None:
    """A map that only some of them took over would make a block that reads two different streams."""
    block_runner = BlockRunner(resolved=resolve(tiny_model(variant)))
    stream = block_runner.enter(token_ids(2, 24))
    for index in range(len(block_runner.blocks)):
        inputs = inputs_of(block_runner, index, stream)
        readings = [write.reads for write in block_runner.writes(index) if write.reads]
        read = [block_runner.input_of(index, stream, weights[0].module) for weights in readings]
        assert len(readings) == 2
        for values in read:  # of a parallel block attention and MLP read the same
            named = {
                weight.path for other, its in zip(readings, read, strict=True) if same(its, values) for weight in other
            }
            assert {path for path, given in inputs.items() if same(given, values)} == named
        stream = block_runner.run(index, stream)


def inputs_of(block_runner: BlockRunner, index: int, stream: torch.Tensor) -> dict[str, torch.Tensor]:
    """By path, each matrix of the block that can multiply the stream, with what its module is given.

    Norms multiply channel by channel, and what writes the stream reads something else: both are left out.
    """
    block = block_runner.blocks[index]
    writes = {weight.path for weight in block_runner.writes(index)[-1].folds}
    found = {}
    for path, module in block.named_modules():
        for name, each in module.named_parameters(recurse=False):
            if each.ndim > 1 and f"{path}.{name}" not in writes:
                found[f"{path}.{name}"] = block_runner.input_of(index, stream, path)
    return found


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


@every_variant
@torch.inference_mode()
def test_a_block_continues_from_a_given_attention_write(variant: Variant) -> None:
    """To the bit as if it had computed that itself, and without computing it."""
    block_runner = BlockRunner(resolved=resolve(tiny_model(variant)))
    stream = block_runner.enter(token_ids(2, 24))
    first, second = block_runner.writes(0)
    assert first.unit is not None
    block, reader = block_runner.blocks[0], second.reads[0].module
    written, own = [block_runner.run_write(0, stream, 0)], block_runner.input_of(0, stream, reader)
    after, write = block_runner.run_with_last_write(0, stream)
    unit = block.get_submodule(first.unit)
    with torch.no_grad():
        for parameter in [*unit.parameters(), *block.get_submodule(first.module).parameters()]:
            parameter.fill_(math.nan)
    assert torch.equal(block_runner.input_of(0, stream, reader, written=written), own)
    assert torch.equal(block_runner.run(0, stream, written=written), after)
    assert torch.equal(block_runner.run_with_last_write(0, stream, written=written)[1], write)
    assert "forward" not in vars(unit)


@every_variant
@torch.inference_mode()
def test_the_final_norm_gets_the_last_stream_and_takes_a_factor(variant: Variant) -> None:
    model, tokens = tiny_model(variant), token_ids(2, 24)
    resolved = resolve(model)
    norm = resolved.final_norm
    assert (norm is not None) == (variant.name != "opt-plain")
    if norm is None:
        return
    last = dense_pass(model, tokens)[0][-1]
    with (
        record_values(Hook(module=norm, on_input=True)) as read,
        record_values(Hook(module=norm)) as gave,
    ):
        model(input_ids=tokens, use_cache=False)
    assert torch.equal(read[0], last)
    scale_final_norm(resolved, 0.5)
    torch.testing.assert_close(norm(last), gave[0] * 0.5, rtol=1e-5, atol=1e-6)


def test_a_wrong_row_is_found_before_anything_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    model, row = tiny_model(), FAMILIES["llama"]
    for wrong in (
        reads("self_attn.qkv_proj.weight"),
        reads("mlp.down_proj.weight"),  # it reads 40 values
        replace(row, final_norm=Weight("model.final_norm.weight", 0, 0.0)),
    ):
        monkeypatch.setitem(FAMILIES, "llama", wrong)
        with pytest.raises(UnsupportedFamily, match="not laid out as expected"):
            resolve(model)


def test_a_block_of_no_known_kind_is_an_error() -> None:
    wrong = ResolvedModel(model=tiny_model(), layout=reads("mlp.a.weight"))
    with pytest.raises(AttributeError, match="self_attn"):
        wrong.writes(nn.Identity())


def reads(path: str) -> Layout:
    """The row of llama with another reading."""
    row = FAMILIES["llama"]
    return replace(
        row, kinds=tuple(tuple(replace(one, reads=(Weight(path, 1),)) for one in kind) for kind in row.kinds)
    )
