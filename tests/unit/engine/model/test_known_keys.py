"""Files beside the weights reach transformers with known keys only, and what libraries raise for them is ours."""

import inspect
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from benchmarks.harness import tiny_models
from replaceme_core.engine.model.known_keys import known_generation, known_names
from replaceme_core.engine.model.lazy_model import load_lazily
from replaceme_core.engine.model.load import load_config, load_model, load_tokenizer, private_view
from replaceme_core.errors import BrokenModel, OutOfMemory, UnsupportedFamily
from replaceme_core.families.layout import FAMILIES
from replaceme_core.library_errors import library_errors
from tests.fixtures.hostile.case import changing
from tests.fixtures.hostile.watch import nothing_escapes
from tests.fixtures.models.tiny import VARIANTS, Variant, save_tiny, tiny_config


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "model")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("return_dict", False),
        ("experts_implementation", "acme/kernel"),
        ("to_dict", 1),
        ("id2label", {"x": 1}),
        ("a_word_of_its_own", "x"),
    ],
)
def test_keys_that_no_class_reads_change_nothing(directory: Path, key: str, value: object) -> None:
    before = load_config(directory).to_dict()
    changing("config.json", **{key: value})(directory)
    after = load_config(directory).to_dict()
    assert {**after, "_name_or_path": ""} == {**before, "_name_or_path": ""}
    model = load_model(directory, dtype=torch.float32, device="cpu")
    assert model(input_ids=torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, 260)


@pytest.mark.parametrize(
    ("name", "key"), [("tokenizer_config.json", "vocab_file"), ("special_tokens_map.json", "gguf_file")]
)
def test_options_of_a_tokenizer_open_no_file(directory: Path, tmp_path: Path, name: str, key: str) -> None:
    before = load_tokenizer(directory)("one two")["input_ids"]
    (tmp_path / "outside.json").write_text("{}")
    changing(name, **{key: str(tmp_path / "outside.json")})(directory)
    with private_view(directory, weights=False) as view:
        assert key not in json.loads((view / name).read_text())
    with nothing_escapes(directory):
        assert load_tokenizer(directory)("one two")["input_ids"] == before


@pytest.mark.parametrize("text", ["{", '{"watermarking_config": {"a": 1}}'])
def test_a_generation_config_is_read_alike_whole_and_lazily(directory: Path, text: str) -> None:
    (directory / "generation_config.json").write_text(text)
    for load in (load_model, load_lazily):
        if text == "{":
            with pytest.raises(BrokenModel, match=r"generation_config\.json"):
                load(directory, dtype=torch.float32, device="cpu")
        else:
            load(directory, dtype=torch.float32, device="cpu").generation_config.to_dict()


@pytest.mark.parametrize("load", [load_model, load_lazily])
def test_how_a_model_searches_for_its_answers_stays(load: Callable[..., PreTrainedModel], directory: Path) -> None:
    beams = {"num_beams": 4, "length_penalty": 0.5}
    (directory / "generation_config.json").write_text(json.dumps({**beams, "payload": 1}))
    found: Any = load(directory, dtype=torch.float32, device="cpu").generation_config
    assert found.to_diff_dict().items() >= beams.items()


def test_an_error_of_a_library_is_one_line_with_a_remedy() -> None:
    remedy = r"^it fails \(.{1,300}\); use the files that were saved with the model$"
    with pytest.raises(BrokenModel, match=remedy), library_errors("it fails"):
        json.loads("[" + "x\n" * 500)
    with pytest.raises(BrokenModel, match=remedy), library_errors("it fails"):
        torch.zeros(2, 3) @ nn.Linear(4, 5)(torch.zeros(6))


def test_memory_that_ends_is_no_fault_of_the_model() -> None:
    def allocate() -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

    with pytest.raises(OutOfMemory), library_errors("it fails"):
        allocate()
    with pytest.raises(MemoryError), library_errors("it fails"):
        raise MemoryError


def test_a_mistake_of_ours_stays_one() -> None:
    with pytest.raises(AttributeError), library_errors("it fails"):
        known_generation(None)  # type: ignore[arg-type]


_USUAL_SIZES = {"num_hidden_layers": 3, "hidden_size": 64, "num_attention_heads": 4}
_SIZES = {"gpt2": {"n_embd": 64, "n_layer": 3}, "falcon_mamba": {"num_hidden_layers": 3, "hidden_size": 64}}
_NO_INPUTS = {"hidden_size_per_layer_input": 0}
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
    if variant.model_type == "falcon":
        plain.pop("num_key_value_heads")  # its class has another name for it, and computes this one
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
        ("phi", {"partial_rotary_factor": 0.25, "rope_theta": 5e4}),
        ("gpt_neox", {"rotary_pct": 0.5, "rotary_emb_base": 20000}),
        ("gemma3_text", {"rope_theta": 1e6, "rope_local_base_freq": 9e3, "sliding_window_pattern": 3}),
        ("modernbert-decoder", {"local_rope_theta": 5e3, "global_rope_theta": 6e5, "global_attn_every_n_layers": 2}),
        ("minimax_m2", {"rotary_dim": 8}),
        ("lfm2", {"block_ff_dim": 96, "tie_embedding": False}),
        (
            "gemma4_text",
            {"global_head_dim": 32, "num_global_key_value_heads": 2, "attention_k_eq_v": True, **_NO_INPUTS},
        ),
        ("nemotron_h", {"hybrid_override_pattern": "M*-", "mamba_d_conv": 3, "mamba_n_groups": 2}),
        ("qwen3_next", {"full_attention_interval": 2}),
        ("mimo_v2_flash", {"sliding_window_size": 64}),
        ("kimi_linear", {"linear_attn_config": {"full_attn_layers": [2], "kda_layers": [1, 3], "head_dim": 8}}),
        ("minimax_m3_vl_text", {"sparse_attention_config": {"sparse_attention_freq": [0, 1, 1]}}),
        ("falcon_mamba", {"intermediate_size": 96}),
        ("bailing_hybrid", {"head_dim": 16, "linear_head_dim": 32}),
        ("glm_moe_dsa", {"index_topk_pattern": "FSF", "num_experts": 4}),
    ],
)
def test_keys_of_earlier_versions_still_count(model_type: str, keys: dict[str, object], tmp_path: Path) -> None:
    config = {"model_type": model_type, **_SIZES.get(model_type, _USUAL_SIZES), **keys}
    whole = AutoConfig.from_pretrained(write(tmp_path / "whole", config))
    assert content(load_config(write(tmp_path / "known", config))) == content(whole)


def test_a_type_that_only_evaluate_reads_is_left_as_it_is(tmp_path: Path) -> None:
    config = load_config(write(tmp_path / "model", {"model_type": "openai-gpt", "n_head": 4, "something": 1}))
    assert config.to_dict()["something"] == 1


_WITHOUT_EFFECT = {
    "layer_types",  # read for a warning only
    "out_features",
    "out_indices",  # of a model that serves as a backbone
    "pad_token_id",  # of an embedding, whose rows it does not change
    "per_layer_config",  # known by the row of the type
    "q_head_dim",  # taken away
    "use_falcon_mambapy",  # another implementation of the same
}


def read_by_hand(kind: type[PreTrainedConfig]) -> Iterator[tuple[type[PreTrainedConfig], str]]:
    """The class and its parts, each with the names of the keys that it takes from what is no field."""
    for one in kind.__mro__:
        if one.__module__.startswith("transformers.models."):
            source = inspect.getsource(one)
            for name in re.findall(r'kwargs(?:\.(?:get|pop|setdefault)\(|\[)\s*"(\w+)"|"(\w+)" in kwargs', source):
                yield kind, "".join(name)
    for part in kind.sub_configs.values():
        if part is not AutoConfig:
            yield from read_by_hand(part)


def test_what_classes_read_by_hand_is_known() -> None:
    found = {entry for model_type in FAMILIES for entry in read_by_hand(CONFIG_MAPPING[model_type])}
    assert {name for _, name in found} >= _WITHOUT_EFFECT
    assert not [(kind, name) for kind, name in found if name not in known_names(kind) | _WITHOUT_EFFECT]


@pytest.mark.parametrize(
    ("model_type", "keys"),
    [("modernbert-decoder", {"local_rope_theta": 20.0, "global_rope_theta": 30.0}), ("minimax_m2", {"rotary_dim": 4})],
)
def test_a_model_with_such_keys_computes_what_it_did(model_type: str, keys: dict[str, object], tmp_path: Path) -> None:
    model = tiny_models.built(tiny_models.tiny_config(model_type))
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["rope_parameters"]
    (tmp_path / "config.json").write_text(json.dumps(config | keys))
    tokens = torch.arange(24).unsqueeze(0)
    with torch.no_grad():
        wanted = AutoModelForCausalLM.from_pretrained(tmp_path).eval()(input_ids=tokens).logits
        found = load_model(tmp_path, dtype=torch.float32, device="cpu")(input_ids=tokens).logits
    assert torch.allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize(
    "value",
    [2**24, float("inf"), "M" * 1001, [0] * 1001, {"a": [[1]]}, {"a": ["c" * 1001]}],
    ids=["large", "infinite", "long text", "long list", "deep", "long text within"],
)
def test_a_value_that_no_class_checks_must_be_plain_and_short(value: object, tmp_path: Path) -> None:
    config = {"model_type": "llama", **_USUAL_SIZES, "first_k_dense_replace": value}
    with pytest.raises(BrokenModel, match="first_k_dense_replace"):
        load_config(write(tmp_path / "model", config))


def clip() -> dict[str, Any]:
    config: dict[str, Any] = json.loads(tiny_models.tiny_config("clip").to_json_string())
    return config


def test_a_part_in_its_older_place_counts(tmp_path: Path) -> None:
    config = clip()
    config["text_config"]["hidden_act"] = "gelu"
    config["text_config_dict"] = {"hidden_size": config["text_config"]["hidden_size"], "payload": 1}
    loaded = load_config(write(tmp_path / "model", config)).text_config
    assert loaded.hidden_act == "quick_gelu", "what the older place leaves out is that of the class"
    assert not hasattr(loaded, "payload")


@pytest.mark.parametrize("leave_out", [(), ("num_hidden_layers",), None], ids=["other", "size", "part"])
def test_a_part_in_its_older_place_may_not_differ(leave_out: tuple[str, ...] | None, tmp_path: Path) -> None:
    """What is admitted is the size of the part in its newer place."""
    config = clip()
    config["vision_config_dict"] = {"num_hidden_layers": 10**6}
    if leave_out is None:
        config |= config.pop("vision_config")
        config["model_type"] = "clip"
    else:
        config["vision_config"] = {key: one for key, one in config["vision_config"].items() if key not in leave_out}
    with pytest.raises(UnsupportedFamily, match="num_hidden_layers in vision_config_dict"):
        load_config(write(tmp_path / "model", config))
