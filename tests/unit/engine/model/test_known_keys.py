"""Files beside the weights reach transformers with known keys only, and what libraries raise for them is ours."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoConfig, PreTrainedConfig

from replaceme_core.engine.model.known_keys import known_generation
from replaceme_core.engine.model.lazy_model import load_lazily
from replaceme_core.engine.model.load import load_config, load_model, load_tokenizer, private_view
from replaceme_core.errors import BrokenModel, OutOfMemory
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
        ("phi", {"partial_rotary_factor": 0.25, "rope_theta": 5e4}),
        ("gpt_neox", {"rotary_pct": 0.5, "rotary_emb_base": 20000}),
        ("gemma3_text", {"rope_theta": 1e6, "rope_local_base_freq": 9e3, "sliding_window_pattern": 3}),
    ],
)
def test_keys_of_earlier_versions_still_count(model_type: str, keys: dict[str, object], tmp_path: Path) -> None:
    config = {"model_type": model_type, **_SIZES.get(model_type, _USUAL_SIZES), **keys}
    whole = AutoConfig.from_pretrained(write(tmp_path / "whole", config))
    assert content(load_config(write(tmp_path / "known", config))) == content(whole)


def test_a_type_that_only_evaluate_reads_is_left_as_it_is(tmp_path: Path) -> None:
    config = load_config(write(tmp_path / "model", {"model_type": "openai-gpt", "n_head": 4, "something": 1}))
    assert config.to_dict()["something"] == 1
