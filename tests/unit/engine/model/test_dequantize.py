"""Weights that are published quantized: read as transformers reads them, and refused where parts do not fit."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from replaceme_core.engine.model.dequantize import in_full_precision
from replaceme_core.engine.model.load import stored_weights
from replaceme_core.engine.model.safetensors_io import tensors_of
from replaceme_core.errors import BrokenModel, OutOfSpace, UnsupportedFamily
from replaceme_core.hub.model_config import read_outline
from replaceme_core.hub.model_files import read_config, weight_files
from replaceme_core.hub.quantized import as_read, scheme_of
from replaceme_core.plan.resources import rough_shape, shape_of
from tests.fixtures.models.quantized import save_fp8, save_mxfp4
from tests.fixtures.models.tiny import save_tiny


def loaded(directory: Path) -> dict[str, torch.Tensor]:
    """As transformers loads it, which dequantizes on a machine without an accelerator."""
    found: dict[str, torch.Tensor] = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).state_dict()
    return found


@pytest.mark.parametrize(
    "save",
    [save_mxfp4, save_fp8, lambda place: save_fp8(place, name="qwen3-moe", moe_intermediate_size=32)],
    ids=["mxfp4", "fp8", "fp8-experts"],
)
def test_the_copy_has_the_values_that_transformers_reads(save: Callable[[Path], Path], tmp_path: Path) -> None:
    source = save(tmp_path / "source")
    expected = loaded(source)
    with in_full_precision(source, beside=tmp_path / "out") as copy:
        found = loaded(copy)
        assert found.keys() == expected.keys()
        assert [name for name, values in expected.items() if not torch.equal(found[name], values)] == []
        assert json.loads((copy / "config.json").read_text()).get("quantization_config") is None
        assert stored_weights(copy).dtype is torch.bfloat16
        sizes = {one.name: one.shape for one in tensors_of(weight_files(copy))}
        headers = as_read(read_config(source), tensors_of(weight_files(source)))
        assert {one.name: one.shape for one in headers} == sizes, "the plan reads headers only"
        config, outline = read_config(source), read_outline(source)
        shape = shape_of(outline, config, tensors_of(weight_files(source)))
        assert shape.parameters == stored_weights(copy).values
        bytes_ = sum(path.stat().st_size for path in weight_files(source))
        assert rough_shape(outline, config, weight_bytes=bytes_).parameters > 0.7 * shape.parameters
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_squares_may_reach_over_the_edge(tmp_path: Path) -> None:
    """As in DeepSeek-V3, where 576 rows have squares of 128."""
    source = save_fp8(tmp_path / "source", square=24)
    stored = load_file(source / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    values, scales = stored[name].float(), stored[f"{name}_scale_inv"]
    assert (values.shape, scales.shape) == ((64, 32), (3, 2))
    with in_full_precision(source, beside=tmp_path / "out") as copy:
        found = load_file(copy / "model.safetensors")[name]
    assert torch.equal(found[:24, :24], (values[:24, :24] * scales[0, 0]).bfloat16())
    assert torch.equal(found[48:, 24:], (values[48:, 24:] * scales[2, 1]).bfloat16())


def test_weights_in_full_precision_are_read_where_they_are(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source")
    with in_full_precision(source, beside=tmp_path / "out") as same:
        assert same == source


@pytest.mark.parametrize(
    ("scheme", "words"),
    [
        ({"quant_method": "gptq", "bits": 4}, "'gptq'"),
        ({"quant_method": "fp8"}, "weight_block_size"),
        ({"quant_method": "fp8", "weight_block_size": [0, 128]}, "weight_block_size"),
        ({"quant_method": "fp8", "weight_block_size": [True, 128.0]}, "weight_block_size"),
        ({"quant_method": "fp8", "weight_block_size": [8, 8], "activation_scheme": "static"}, "dynamic activations"),
        ("mxfp4", "quantized"),
        ({}, "quantized"),
    ],
)
def test_other_schemes_are_refused(scheme: object, words: str) -> None:
    with pytest.raises(UnsupportedFamily, match=words):
        scheme_of({"quantization_config": scheme})


def _changed(source: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    path = source / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    return source


NAME = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.update({f"{NAME}_scale_inv": torch.ones(2, 2)}),
        lambda tensors: tensors.update({f"{NAME}_scale_inv": tensors[f"{NAME}_scale_inv"].half()}),
        lambda tensors: tensors.update({NAME: tensors[NAME].bfloat16()}),
        lambda tensors: tensors.pop(f"{NAME}_scale_inv"),
        lambda tensors: tensors[f"{NAME}_scale_inv"].fill_(float("inf")),
    ],
    ids=["shape", "dtype", "values", "no scale", "infinite"],
)
def test_parts_that_do_not_fit_are_refused(change: Callable[[dict[str, torch.Tensor]], None], tmp_path: Path) -> None:
    source = _changed(save_fp8(tmp_path / "source"), change)
    with pytest.raises(BrokenModel, match=NAME), in_full_precision(source, beside=tmp_path / "out") as copy:
        stored_weights(copy)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_a_disk_without_space_is_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save_mxfp4(tmp_path / "source")
    monkeypatch.setattr("replaceme_core.library_errors.free_space", lambda _: 1000)
    with (
        pytest.raises(OutOfSpace, match="the weights in full precision"),
        in_full_precision(source, beside=tmp_path / "out"),
    ):
        pytest.fail("there is no space")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]
