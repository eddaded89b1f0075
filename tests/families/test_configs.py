"""What the table says of configs: what is refused and why, and which removals keep a pattern of kinds of blocks."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from benchmarks.harness import tiny_models
from benchmarks.harness.discover import merged_kinds
from replaceme_core.engine.model.block_runner import BlockRunner
from replaceme_core.engine.model.changes import remove_blocks
from replaceme_core.engine.model.load import load_config, stored_weights
from replaceme_core.errors import InvalidInput, UnsafeModel, UnsupportedFamily
from replaceme_core.families.layout import (
    FAMILIES,
    REFUSALS,
    follow_blocks,
    has_pattern,
    irregular_lists,
    keeps_pattern,
    limits,
    lookup,
    must_stay,
)
from replaceme_core.families.resolve import resolve
from replaceme_core.hub.model_config import admit_config
from replaceme_core.request.removal import families
from tests.fixtures.models.tiny import BLOCKS, BY_NAME, VARIANTS, WIDTH, Variant, tiny_config, tiny_model, token_ids


def test_the_tables_do_not_contradict_each_other() -> None:
    assert not FAMILIES.keys() & REFUSALS.keys()
    assert not {*FAMILIES, *REFUSALS} - {*CONFIG_MAPPING}
    assert [one.model_type for one in families()] == sorted(FAMILIES) + sorted(REFUSALS)


def test_a_block_is_of_the_kind_that_says_most_of_it() -> None:
    """Whatever was found first: a block of Gemma 4 with experts has all that one without them has."""
    assert {name for name, row in FAMILIES.items() if merged_kinds(reversed(row.kinds)) != row.kinds} == set()


@pytest.mark.parametrize(
    ("model_type", "words"),
    [
        ("diffllama", "'diffllama' is not supported: each of its blocks is computed from its index"),
        ("minicpm3", "multiplies what its blocks add by 0.572, which no field of its config says"),
        ("t5", "is an encoder-decoder"),
        ("bert", "is an encoder, not a causal language model"),
        ("sam_vision_model", "each of its blocks is computed from its index"),
        ("kosmos-2", "vision or audio tower; save its language model alone"),
        ("unknown_type", "'unknown_type' is not known; `replaceme families` and GET /families list"),
    ],
)
def test_a_type_is_refused_with_its_reason(model_type: str, words: str) -> None:
    assert isinstance(lookup(model_type), str)
    config = {"model_type": model_type, "num_hidden_layers": 6, "hidden_size": 16}
    with pytest.raises(UnsupportedFamily, match=words) as caught:
        admit_config(config)
    assert caught.value.field == "model"
    assert model_type in caught.value.message


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("opt", {"do_layer_norm_before": False}, "sets do_layer_norm_before to False: its norms come after the sums"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scaled by the index of the block"),
        ("gpt2", {"add_cross_attention": True}, "third write"),
        ("gemma", {"use_bidirectional_attention": True}, "is an encoder"),
        ("gemma3", {"use_bidirectional_attention": True}, "is an encoder"),
    ],
)
def test_a_supported_type_with_an_unsupported_config(name: str, changes: dict[str, object], words: str) -> None:
    """From its config, and again on the live model, whose config may not have said so."""
    config = tiny_config(BY_NAME[name], **changes)
    with pytest.raises(UnsupportedFamily, match=words):
        admit_config(json.loads(config.to_json_string()))
    with pytest.raises(UnsupportedFamily, match=words):
        resolve(AutoModelForCausalLM.from_config(config))
    sentence = limits(FAMILIES[config.model_type])
    assert sentence is not None
    assert next(iter(changes)) in sentence


@pytest.mark.parametrize(
    ("name", "changes", "error"),
    [
        ("opt", {"do_layer_norm_before": "true"}, UnsupportedFamily),
        ("gpt2", {"n_layer": None}, UnsafeModel),
        ("llama", {"per_layer_config": {"1": {"intermediate_size": 8}}}, UnsupportedFamily),
    ],
)
def test_a_config_that_is_hostile(name: str, changes: dict[str, object], error: type[InvalidInput]) -> None:
    config = {**tiny_config(BY_NAME[name]).to_dict(), **changes}
    with pytest.raises(error):
        admit_config({key: value for key, value in config.items() if not key.startswith("_")})


def test_a_live_model_that_does_not_fit_its_row() -> None:
    model = tiny_model(BY_NAME["mixtral-square"])
    model.model.layers[3].mlp.experts.is_transposed = True
    with pytest.raises(UnsupportedFamily, match=r"mixtral model is not laid out as expected: mlp\.experts\.down_proj"):
        resolve(model)
    model = tiny_model(BY_NAME["qwen2-moe-mixed"])
    del model.model.layers[1].mlp.shared_expert
    with pytest.raises(UnsupportedFamily, match="shared_expert"):
        resolve(model)


@pytest.mark.parametrize("removed", [[2], [2, 3]], ids=str)
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_what_is_saved_is_admitted_and_has_no_stale_step(variant: Variant, removed: list[int]) -> None:
    """A step beside lists that it does not give would be believed by who converts the model."""
    row, model = FAMILIES[variant.model_type], tiny_model(variant)
    kept_pattern = keeps_pattern(model.config, layout=row, removed=removed)
    remove_blocks(resolve(model), removed)
    saved = json.loads(model.config.to_json_string())
    again = type(model.config).from_dict(saved)
    assert (irregular_lists(again, layout=row) == ()) == kept_pattern
    assert bool(saved.keys() & set(row.steps)) == (kept_pattern and bool(row.steps))
    outline = admit_config(saved)
    assert (outline.blocks, outline.hidden_size, outline.layout) == (BLOCKS - len(removed), WIDTH, row)


@pytest.mark.parametrize(
    ("name", "removed", "kept"),
    [
        ("smollm3", [2], False),
        ("smollm3", [2, 3], True),
        ("smollm3", [2, 4], False),
        ("gemma3", [4], False),
        ("gemma3", [5], True),
        ("qwen2-sliding", [1], True),
        ("qwen2-moe-mixed", [1], False),
        ("smollm3-sliding", [4, 5], False),
        ("llama", [1], True),
    ],
)
def test_which_removals_keep_the_pattern(name: str, removed: list[int], kept: bool) -> None:
    """Whether what is computed from the new index is still the kind of each block."""
    variant = BY_NAME[name]
    config = tiny_config(variant)
    assert keeps_pattern(config, layout=FAMILIES[variant.model_type], removed=removed) == kept
    assert config.num_hidden_layers == BLOCKS, "the config itself is left alone"


@pytest.mark.parametrize(("model_type", "attends"), [("recurrent_gemma", [2, 5]), ("lfm2", [2, 4]), ("bamba", [1, 4])])
def test_blocks_with_attention_and_others_must_stay(model_type: str, attends: list[int]) -> None:
    """The list of kinds is computed from the index in the first, and given in the second; the third lists indices."""
    fields = {"full_attn_idxs": attends, "attn_layer_indices": attends}
    config, row = tiny_models.tiny_config(model_type, **fields), FAMILIES[model_type]
    others = [block for block in range(BLOCKS) if block not in attends]
    for removed in (attends, others):
        assert "needs blocks with attention and others" in str(must_stay(config, layout=row, removed=removed))
        assert must_stay(config, layout=row, removed=removed[1:]) is None


@pytest.mark.parametrize("step", ["LLLG", None])
def test_a_step_that_the_class_cannot_use(step: str | None) -> None:
    """As in the files of EXAONE 4, which has lists beside it."""
    row = FAMILIES["exaone4"]
    config = tiny_models.tiny_config("exaone4")
    kinds = ["sliding_attention"] * (BLOCKS - 1) + ["full_attention"]
    for layer_types, irregular in ((kinds, ("layer_types",)), (kinds[-1:] * BLOCKS, ())):
        config.layer_types, config.sliding_window_pattern = layer_types, step
        assert irregular_lists(config, layout=row) == irregular


@pytest.mark.parametrize(
    ("name", "several"),
    [("llama", False), ("qwen2", False), ("qwen2-sliding", True), ("gemma2", True), ("smollm3", True)],
)
def test_which_models_have_blocks_of_several_kinds(name: str, several: bool) -> None:
    variant = BY_NAME[name]
    assert has_pattern(tiny_config(variant), layout=FAMILIES[variant.model_type]) == several


@pytest.mark.parametrize(
    ("model_type", "older"),
    [
        ("qwen3_5_text", {"full_attention_interval": 3}),
        ("kimi_linear", {"linear_attn_config": {"full_attn_layers": [1, 4], "kda_layers": [2, 3, 5, 6]}}),
    ],
)
def test_an_older_pattern_goes_with_the_blocks(model_type: str, older: dict[str, object]) -> None:
    """It would be believed beside the lists, or name blocks that are gone."""
    row, config = FAMILIES[model_type], tiny_models.tiny_config(model_type)
    before = list(config.layer_types)
    config = type(config).from_dict({**config.to_dict(), **older})
    follow_blocks(config, layout=row, kept=[0, 1, 2, 4])
    saved = config.to_dict()
    assert not saved.keys() & older.keys()
    assert saved["layer_types"] == [before[index] for index in (0, 1, 2, 4)]


def test_sizes_that_a_file_leaves_out_are_those_of_the_class() -> None:
    parts = {row.part_type: dict(row.defaults) for row in FAMILIES.values() if row.defaults}
    assert parts == {one: {name: CONFIG_MAPPING[one]().to_dict()[name] for name in parts[one]} for one in parts}


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        ({"model_type": "llava", "text_config": {"model_type": "llama", "vocab_size": 32064}}, (32, 4096, None)),
        ({"model_type": "idefics2", "text_config": {"model_type": "mistral"}}, (32, 4096, None)),
        ({"model_type": "siglip", "vision_config": {"model_type": "siglip_vision_model"}}, (12, 768, 196)),
        ({"model_type": "clip", "vision_config": {"patch_size": 16}}, (12, 768, 197)),
        (
            {"model_type": "paligemma", "text_config": {"model_type": "gemma", "use_bidirectional_attention": False}},
            (28, 3072, None),
        ),
        ({"model_type": "qwen2_vl", "num_hidden_layers": 28, "hidden_size": 1536}, (28, 1536, None)),
        ({"model_type": "bloom", "n_layer": 24, "n_embed": 1024}, (24, 1024, None)),
    ],
    ids=lambda value: value.get("model_type") if isinstance(value, dict) else "",
)
def test_official_files_are_admitted(config: dict[str, object], sizes: tuple[int, int, int | None]) -> None:
    outline = admit_config(config)
    assert (outline.blocks, outline.hidden_size, outline.positions) == sizes


@pytest.mark.parametrize(
    ("model_type", "field"),
    [("paligemma", "use_bidirectional_attention"), ("gemma4_text", "hidden_size_per_layer_input")],
)
def test_what_a_class_fills_in_is_not_left_out(model_type: str, field: str) -> None:
    """As in the files of PaliGemma: the job would fail once the model is loaded."""
    config = json.loads(tiny_models.tiny_config(model_type).to_json_string())
    part = config.get("text_config", config)
    part[field] = 0 if field.startswith("hidden") else False
    admit_config(config)
    del part[field]
    with pytest.raises(UnsupportedFamily, match=f"leaves {field} out"):
        admit_config(config)


def test_gemma_4_whose_images_alone_attend_in_both_directions() -> None:
    """As its larger models do; to text it is a causal language model."""
    sizes = {**tiny_models.fitting_sizes("gemma4_text"), "vocab_size": 260}
    config = tiny_models.tiny_config("gemma4_text", **sizes, use_bidirectional_attention="vision")
    admit_config(json.loads(config.to_json_string()))
    model, tokens = tiny_models.built(config), token_ids(2, 24)
    block_runner = BlockRunner(resolved=resolve(model))
    with torch.inference_mode():
        assert block_runner.prove(tokens) < 1e-5
        before = model(input_ids=tokens, use_cache=False).logits[:, :12]
        tokens[:, 12:] += 1
        assert torch.equal(model(input_ids=tokens, use_cache=False).logits[:, :12], before)
    with pytest.raises(UnsupportedFamily, match="sets use_bidirectional_attention to 'all'"):
        admit_config({**json.loads(config.to_json_string()), "use_bidirectional_attention": "all"})


@pytest.mark.parametrize("model_type", ["fuyu", "moshi"])
def test_embeddings_of_patches_and_a_row_for_no_token_are_no_faults(model_type: str, tmp_path: Path) -> None:
    tiny_models.built(tiny_models.tiny_config(model_type)).save_pretrained(tmp_path)
    stored_weights(tmp_path)


@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_vl"])
def test_a_config_with_the_fields_of_its_part_beside_the_others_is_read_alike(model_type: str, tmp_path: Path) -> None:
    tiny_models.built(tiny_models.tiny_config(model_type)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    text = config.pop("text_config")
    (tmp_path / "config.json").write_text(json.dumps({**text, **config, "payload": 1}))
    stored_weights(tmp_path)
    found, plain = load_config(tmp_path), AutoConfig.from_pretrained(tmp_path)
    assert found.text_config.to_dict() == plain.text_config.to_dict()
    assert found.text_config.hidden_size == text["hidden_size"]
    assert not hasattr(found, "payload")
