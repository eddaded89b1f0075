"""Kinds of blocks that others compute from the index: what a saved config says, and which removals keep them."""

import json
from pathlib import Path

import pytest

from replaceme_core.engine.model.changes import remove_blocks
from replaceme_core.families.layout import has_pattern, irregular_lists, keeps_pattern
from replaceme_core.families.resolve import resolve
from replaceme_core.families.table import FAMILIES
from tests.fixtures.models.tiny import BLOCKS, VARIANTS, Variant, tiny_config, tiny_model


def variant_of(name: str) -> Variant:
    return next(one for one in VARIANTS if one.name == name)


@pytest.mark.parametrize("removed", [[2], [2, 3]], ids=str)
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_no_stale_step_is_saved(variant: Variant, removed: list[int], tmp_path: Path) -> None:
    """A step beside lists that it does not give would be believed by who converts the model."""
    row, model = FAMILIES[variant.model_type], tiny_model(variant)
    kept_pattern = keeps_pattern(model.config, layout=row, removed=removed)
    remove_blocks(resolve(model), removed)
    model.config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    again = type(model.config).from_dict(saved)
    assert (irregular_lists(again, layout=row) == ()) == kept_pattern
    assert bool(saved.keys() & set(row.steps)) == (kept_pattern and bool(row.steps))


@pytest.mark.parametrize(
    ("name", "removed", "kept"),
    [
        ("smollm3", [2], False),
        ("smollm3", [2, 3], True),
        ("smollm3", [3, 4], True),
        ("smollm3", [2, 4], False),
        ("smollm3", [4, 5], True),
        ("gemma3", [4], False),
        ("gemma3", [5], True),
        ("gemma2", [1, 2, 3], False),
        ("gemma2", [3, 4, 5], True),
        ("qwen2-sliding", [1], True),
        ("qwen2-moe-mixed", [1], False),
        ("smollm3-sliding", [4, 5], False),
        ("llama", [1], True),
    ],
)
def test_which_removals_keep_the_pattern(name: str, removed: list[int], kept: bool) -> None:
    """Whether what is computed from the new index is still the kind of each block."""
    variant = variant_of(name)
    config = tiny_config(variant)
    assert keeps_pattern(config, layout=FAMILIES[variant.model_type], removed=removed) == kept
    assert config.num_hidden_layers == BLOCKS, "the config itself is left alone"


@pytest.mark.parametrize(
    ("name", "several"),
    [("llama", False), ("qwen2", False), ("qwen2-sliding", True), ("gemma2", True), ("smollm3", True)],
)
def test_which_models_have_blocks_of_several_kinds(name: str, several: bool) -> None:
    variant = variant_of(name)
    assert has_pattern(tiny_config(variant), layout=FAMILIES[variant.model_type]) == several
