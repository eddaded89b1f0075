"""Whole jobs on models that no `Variant` stands for: other mixers than attention, and language models with a tower."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from benchmarks.harness import tiny_models
from replaceme_core.engine.model.load import load_config, stored_weights
from replaceme_core.errors import InvalidInput, UnsafeModel, UnsupportedFamily
from replaceme_core.families.layout import FAMILIES, MapStructure
from replaceme_core.families.resolve import resolve
from replaceme_core.hub.model_config import admit_config
from tests.fixtures.models.pipeline import request, run
from tests.fixtures.models.tiny import byte_tokenizer

pytestmark = pytest.mark.usefixtures("brief_reports")

BLOCKS = tiny_models.BLOCKS
NOT_MEASURED = {"enabled": False}


def saved(directory: Path, model_type: str, **changes: object) -> Path:
    """A tiny model of the type with a tokenizer for bytes and the settings of an image processor."""
    sizes = {**tiny_models.fitting_sizes(model_type), "vocab_size": 260, **changes}
    config = tiny_models.tiny_config(model_type, **sizes)
    tiny_models.built(config).save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    (directory / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5],\n "do_resize": true}')
    return directory


@pytest.mark.parametrize(
    ("model_type", "method", "loading"),
    [
        ("nemotron_h", "refit", "whole"),  # blocks of one write
        ("falcon_h1", "auto", "blockwise"),  # of three, with factors
        ("minimax", "least_squares", "whole"),  # that change the stream
        ("gpt_oss", "refit", "whole"),  # experts with their axes in the other order, and biases
        ("mamba2", "cosine", "blockwise"),
        ("lfm2", "auto", "whole"),
        ("deepseek_v3", "auto", "whole"),
    ],
)
def test_a_job_on_other_blocks(model_type: str, method: str, loading: str, tmp_path: Path) -> None:
    source = saved(tmp_path / "source", model_type)
    compute = {"threads": 1, "dtype": "float32", "loading": loading}
    own = 0.0 if loading == "blockwise" else 0.25
    text = {"dataset": "file:text.txt", "samples": 16, "max_length": 32, "self_generated": own}
    finished, _, result = run(request(source, method={"name": method}, compute=compute, calibration=text))
    assert load_config(result).num_hidden_layers == BLOCKS - 2
    assert len(finished.removed_blocks) == 2
    report: Any = finished.report
    assert loading == "blockwise" or report["after"]["speed"]["cache_bytes_per_token"] > 0
    routed = {one["block"]: one["changed"] for one in report["experts"]}
    assert bool(routed) == (model_type in ("nemotron_h", "gpt_oss", "minimax", "deepseek_v3"))
    assert set(routed) <= set(finished.kept_blocks)
    assert all(changed == 0 for block, changed in routed.items() if block < finished.removed_blocks[0])
    assert not routed or 0 <= max(routed.values()) <= 1
    assert [warning for warning in report["warnings"] if warning["code"] == "not_measured"] == []


def test_blocks_whose_kind_follows_from_their_index_go_in_whole_patterns(tmp_path: Path) -> None:
    source = saved(tmp_path / "source", "jamba", attn_layer_period=2)
    with pytest.raises(InvalidInput, match=r"name as many neighbours as the pattern is long$"):
        run(request(source, drop=[3]))
    run(request(source, drop=[2, 3], evaluation=NOT_MEASURED))


def test_a_mixer_of_each_sort_stays(tmp_path: Path) -> None:
    source = saved(tmp_path / "source", "lfm2")
    with pytest.raises(InvalidInput, match="a lfm2 model needs blocks with attention and others"):
        run(request(source, drop=[2, 4]))
    for method in ("drop", "block_influence", "perplexity_greedy", "least_squares", "refit"):
        _, _, result = run(request(source, ratio=0.5, method={"name": method}, evaluation=NOT_MEASURED))
        shutil.rmtree(result)


@pytest.mark.parametrize(("norm", "structure"), [(True, MapStructure.DIAGONAL), (False, MapStructure.FULL)])
def test_a_type_whose_models_have_a_norm_before_the_stream_or_none(norm: bool, structure: MapStructure) -> None:
    config = tiny_models.tiny_config("lfm3", **tiny_models.fitting_sizes("lfm3"), use_sandwich_norm=norm)
    assert resolve(tiny_models.built(config)).structure is structure
    assert FAMILIES["lfm3"].structure is MapStructure.FULL, "so that a request may ask for either"


@pytest.mark.parametrize("model_type", ["gemma4_text", "gpt_neox_japanese"])
def test_a_last_block_that_must_stay(model_type: str, tmp_path: Path) -> None:
    source = saved(tmp_path / "source", model_type)
    with pytest.raises(InvalidInput, match=f"the last block of a {model_type} model must stay"):
        run(request(source, drop=[4, 5]))
    finished, _, result = run(request(source, method={"name": "refit"}, evaluation=NOT_MEASURED))
    stored_weights(result)
    assert finished.kept_blocks[-1] == BLOCKS - 1


@pytest.mark.parametrize(
    ("model_type", "method"), [("gemma3", "refit"), ("llava", "least_squares"), ("qwen2_5_vl", "auto")]
)
def test_the_language_model_becomes_shallower_and_the_tower_stays(model_type: str, method: str, tmp_path: Path) -> None:
    source, row = saved(tmp_path / "source", model_type), FAMILIES[model_type]
    stored_weights(source)
    _, _, result = run(request(source, method={"name": method}))
    config = json.loads((result / "config.json").read_text())
    assert row.part is not None
    assert config[row.part]["num_hidden_layers"] == BLOCKS - 2
    before, after = (load_file(place / "model.safetensors") for place in (source, result))
    towers = [name for name in before if row.block_number(name) is None and "norm" not in name]
    assert any("vision" in name or "visual" in name for name in towers)
    assert all(torch.equal(before[name], after[name]) for name in towers)
    assert (result / "preprocessor_config.json").read_bytes() == (source / "preprocessor_config.json").read_bytes()
    card = (result / "README.md").read_text()
    assert "model = AutoModelForImageTextToText.from_pretrained(" in card
    assert "pipeline_tag: image-text-to-text" in card
    again: Any = AutoModelForImageTextToText.from_pretrained(result)
    assert len(again.get_submodule(row.blocks)) == BLOCKS - 2


def seen(model: Any) -> torch.Tensor:
    """The logits of a `qwen3_vl` for an image of four tokens among text."""
    ids = torch.tensor([[5, 91, 91, 91, 91, 7, 8, 9]])
    pixels = torch.rand(16, 3 * 2 * 14 * 14, generator=torch.Generator().manual_seed(0))
    given = {
        "pixel_values": pixels,
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
        "mm_token_type_ids": (ids == 91).int(),
    }
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=ids, use_cache=False, **given).logits
    return logits


def test_blocks_stay_to_which_a_tower_adds(tmp_path: Path) -> None:
    """Without others, the model sees an image as the original does that leaves these out."""
    sizes = {**tiny_models.fitting_sizes("qwen3_vl"), "vocab_size": 260}
    config = tiny_models.tiny_config("qwen3_vl", **sizes)
    config.vision_config.deepstack_visual_indexes = [0, 1]
    config.text_config.rope_parameters |= {"mrope_section": [4, 2, 2]}
    live: Any = tiny_models.built(config)
    live.save_pretrained(tmp_path / "source")
    byte_tokenizer().save_pretrained(tmp_path / "source")
    with pytest.raises(InvalidInput, match="the first 2 blocks of this qwen3_vl model must stay"):
        run(request(tmp_path / "source", drop=[1, 2]))
    _, _, result = run(request(tmp_path / "source", ratio=0.5, evaluation=NOT_MEASURED))
    shutil.rmtree(result)
    finished, _, result = run(
        request(tmp_path / "source", drop=[3, 4], method={"name": "drop"}, evaluation=NOT_MEASURED)
    )
    assert finished.removed_blocks == [3, 4]
    whole = seen(live)
    for block in (3, 4):  # what its writes add is nothing
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            live.get_submodule(f"model.language_model.layers.{block}.{name}").weight.data.zero_()
    wanted, again = seen(live), AutoModelForImageTextToText.from_pretrained(result)
    assert not torch.allclose(whole, wanted, atol=1e-2)
    assert torch.allclose(seen(again), wanted, atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"auto_map": {}}, UnsafeModel, "auto_map"),
        ({"_attn_implementation": "x/y"}, UnsafeModel, "_attn_implementation"),
        ({"gguf_file": "x"}, UnsafeModel, "gguf_file"),
        ({"quantization_config": {}}, UnsupportedFamily, "quantized"),
        ({"per_layer_config": {"1": {"hidden_size": 8}}}, UnsupportedFamily, "configurations of their own"),
        ({"model_type": "mamba"}, UnsupportedFamily, "must be llama, and this one is 'mamba'"),
        ({"num_hidden_layers": "6"}, UnsafeModel, "positive whole numbers"),
    ],
)
def test_what_is_inside_a_config_is_checked(changes: dict[str, object], error: type[Exception], words: str) -> None:
    config = tiny_models.tiny_config("llava").to_dict()
    assert admit_config(config).blocks == BLOCKS
    config["text_config"].update(changes)
    with pytest.raises(error, match=words):
        admit_config(config)


def test_a_part_of_an_unknown_type_is_refused_and_unknown_keys_are_left_out(tmp_path: Path) -> None:
    config = json.loads(tiny_models.tiny_config("llava").to_json_string())
    config["vision_config"] |= {"to_dict": "x"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert callable(load_config(tmp_path).vision_config.to_dict)
    config["vision_config"]["model_type"] = "of_a_stranger"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedFamily, match="gives vision_config the model_type 'of_a_stranger'"):
        load_config(tmp_path)
