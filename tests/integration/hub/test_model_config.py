"""Configs and headers that are admitted although they are not as `save_pretrained` writes them today."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.harness import tiny_models
from replaceme_core.engine.model.safetensors_io import tensors_of
from replaceme_core.errors import UnsupportedFamily
from replaceme_core.hub.model_config import admit_config
from replaceme_core.hub.model_files import read_config
from replaceme_core.plan.resources import shape_of
from tests.fixtures.models.pipeline import request, run
from tests.fixtures.models.tiny import BY_NAME, byte_tokenizer, save_tiny

pytestmark = pytest.mark.usefixtures("brief_reports")

WEIGHTS, CONFIG = "model.safetensors", "config.json"


@pytest.mark.parametrize(
    ("variant", "name", "dtype"),
    [
        ("neox-parallel", "gpt_neox.layers.{}.attention.bias", torch.uint8),
        ("neox-parallel", "gpt_neox.layers.{}.attention.bias", torch.bool),
        ("gpt2", "transformer.h.{}.attn.bias", torch.uint8),
        ("gpt2", "transformer.h.{}.attn.causal_mask", torch.bool),  # as CodeGen names it
    ],
)
def test_causal_masks_of_older_checkpoints_are_left_out(
    variant: str, name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    """They are larger than the weights here, and so their dtype is that of most values."""
    source = save_tiny(tmp_path / "source", variant=BY_NAME[variant])
    parameters = load_file(source / WEIGHTS)
    mask = torch.ones(1, 1, 256, 256, dtype=dtype).tril()
    masks = {name.format(block): mask.clone() for block in range(6)}
    save_file(parameters | masks, source / WEIGHTS, metadata={"format": "pt"})
    config = read_config(source)
    shape = shape_of(admit_config(config), config, tensors_of([source / WEIGHTS]))
    assert shape.parameters == sum(values.numel() for values in parameters.values())
    _, _, result = run(request(source, evaluation={"enabled": False}))
    assert not masks.keys() & load_file(result / WEIGHTS).keys()


@pytest.mark.parametrize(
    ("model_type", "loading"), [("deepseek_v3", "whole"), ("glm4_moe", "blockwise"), ("glm4_moe_lite", "whole")]
)
def test_blocks_that_predict_tokens_further_ahead_are_left_out(model_type: str, loading: str, tmp_path: Path) -> None:
    """They are stored after the last block, and a result has none of them."""
    source, blocks = tmp_path / "source", tiny_models.BLOCKS
    sizes = {**tiny_models.fitting_sizes(model_type), "vocab_size": 260}
    tiny_models.built(tiny_models.tiny_config(model_type, **sizes)).save_pretrained(source)
    byte_tokenizer().save_pretrained(source)
    parameters, last, ahead = load_file(source / WEIGHTS), f"model.layers.{blocks - 1}.", f"model.layers.{blocks}."
    more = {name.replace(last, ahead): values.clone() for name, values in parameters.items() if last in name}
    more |= {f"{ahead}eh_proj.weight": torch.ones(48, 96), f"{ahead}embed_tokens.weight": torch.ones(260, 48)}
    save_file(parameters | more, source / WEIGHTS, metadata={"format": "pt"})
    config = {**read_config(source), "num_nextn_predict_layers": 1}
    (source / CONFIG).write_text(json.dumps(config))
    shape = shape_of(admit_config(config), config, tensors_of([source / WEIGHTS]))
    assert (shape.blocks, shape.parameters) == (blocks, sum(values.numel() for values in parameters.values()))
    compute = {"threads": 1, "dtype": "float32", "loading": loading}
    _, _, result = run(request(source, drop=[3, 4], compute=compute, evaluation={"enabled": False}))
    assert read_config(result).get("num_nextn_predict_layers", 0) == 0
    left = {name.split(".")[2] for name in load_file(result / WEIGHTS) if name.startswith("model.layers.")}
    assert left == {"0", "1", "2", "3"}


@pytest.mark.parametrize("head", ["SequenceClassification", "TokenClassification", "QuestionAnswering"])
def test_a_language_model_with_another_head_is_refused(head: str) -> None:
    """The result would be a language model, without what was trained."""
    config = tiny_models.tiny_config("llama", tie_word_embeddings=True).to_dict()
    with pytest.raises(UnsupportedFamily, match="has a head that would be lost"):
        admit_config({**config, "architectures": [f"LlamaFor{head}"]})
    for kept in (["LlamaModel"], ["LlamaForCausalLM"], None):
        assert admit_config({**config, "architectures": kept}).auto_class == "AutoModelForCausalLM"
