"""Only known keys of a stranger's config reach transformers, and none that a real config needs is lost."""

import json
from pathlib import Path

import pytest
from transformers import AutoConfig, PreTrainedConfig

from replaceme_core.engine.model.load import load_config
from tests.fixtures.models.tiny import VARIANTS, Variant, tiny_config

_USUAL_SIZES = {"num_hidden_layers": 3, "hidden_size": 64, "num_attention_heads": 4}
_SIZES = {"gpt2": {"n_embd": 64, "n_layer": 3}}
STRANGE = {
    "payload": {"a": [1, 2]},
    "_configuration_file": "other.json",
    "_from_auto": True,
    "custom_pipelines": {"x": {"impl": "evil.Pipeline"}},
    "kernel_repo": "stranger/kernels",
}


def write(folder: Path, config: dict[str, object]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def content(config: PreTrainedConfig) -> dict[str, object]:
    return {key: value for key, value in config.to_dict().items() if key != "_name_or_path"}


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_strange_keys_are_dropped_and_the_others_kept(variant: Variant, tmp_path: Path) -> None:
    plain = tiny_config(variant).to_dict()
    clean = content(AutoConfig.from_pretrained(write(tmp_path / "clean", plain)))
    loaded = load_config(write(tmp_path / "strange", {**plain, **STRANGE}))
    unused = clean.keys() - content(loaded).keys()
    assert unused <= {"intermediate_size", "max_window_layers", "num_key_value_heads"}, "of no use to the type"
    assert content(loaded) == {key: value for key, value in clean.items() if key not in unused}
    assert not any(hasattr(loaded, name) for name in ("payload", "custom_pipelines", "kernel_repo"))


@pytest.mark.parametrize(
    ("model_type", "keys"),
    [
        (
            "llama",
            {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2.0}, "torch_dtype": "float16"},
        ),
        ("qwen2", {"head_dim": 16, "rope_theta": 1e6}),
        ("phi", {"partial_rotary_factor": 0.25, "rope_theta": 5e4}),
        ("gpt_neox", {"rotary_pct": 0.5, "rotary_emb_base": 20000}),
        ("gemma3_text", {"rope_theta": 1e6, "rope_local_base_freq": 9e3, "sliding_window_pattern": 3}),
        ("gpt2", {"num_hidden_layers": 3, "n_embd": 64}),
    ],
)
def test_keys_of_earlier_versions_still_count(model_type: str, keys: dict[str, object], tmp_path: Path) -> None:
    config = {"model_type": model_type, **_SIZES.get(model_type, _USUAL_SIZES), **keys}
    whole = AutoConfig.from_pretrained(write(tmp_path / "whole", config))
    assert content(load_config(write(tmp_path / "known", config))) == content(whole)


def test_a_type_that_only_evaluate_reads_is_left_as_it_is(tmp_path: Path) -> None:
    config = load_config(write(tmp_path / "model", {"model_type": "bloom", "n_head": 4, "something": 1}))
    assert config.to_dict()["something"] == 1
