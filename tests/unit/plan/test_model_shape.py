"""Sizes from headers are those of the live model, for every family and kind of block."""

import json
from pathlib import Path

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from replaceme_core.engine.model.safetensors_io import tensors_of
from replaceme_core.errors import BrokenModel
from replaceme_core.families.table import FAMILIES
from replaceme_core.hub.model_config import admit_config
from replaceme_core.plan.resources import TIED_BY_DEFAULT, ModelShape, shape_of
from tests.fixtures.models.tiny import BLOCKS, VARIANTS, WIDTH, Variant, tiny_model


def saved_shape(directory: Path) -> ModelShape:
    config = json.loads((directory / "config.json").read_text())
    return shape_of(admit_config(config), config, tensors_of([directory / "model.safetensors"]))


def test_families_that_tie_by_default() -> None:
    assert {name for name in FAMILIES if CONFIG_MAPPING[name]().tie_word_embeddings} == TIED_BY_DEFAULT


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_parameters_are_those_of_the_model(variant: Variant, tmp_path: Path) -> None:
    model = tiny_model(variant)
    model.save_pretrained(tmp_path)
    shape = saved_shape(tmp_path)
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert shape.blocks == BLOCKS
    assert (shape.width, shape.item_bytes, shape.vocabulary) == (WIDTH, 4, 260)
    assert shape.parameters_after([1, 2]) == shape.parameters - sum(shape.block_values[1:3])
    assert shape.parameters_after(2) == pytest.approx(shape.parameters_after([3, 4]), rel=0.2)


def test_widths_of_projections(tmp_path: Path) -> None:
    tiny_model(VARIANTS[0]).save_pretrained(tmp_path)
    shape = saved_shape(tmp_path)
    assert (shape.inner, shape.key_value_width) == (40, 8)


def test_a_config_of_another_model_is_refused(tmp_path: Path) -> None:
    tiny_model(VARIANTS[0]).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"num_hidden_layers": 5}
    with pytest.raises(BrokenModel, match="5, and the weights have 6 blocks"):
        shape_of(admit_config(config), config, tensors_of([tmp_path / "model.safetensors"]))
