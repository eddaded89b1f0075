"""What may be loaded, and what is said about the rest."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from replaceme_core.engine.model.block_runner import BlockRunner
from replaceme_core.engine.model.lazy_model import open_for_capture
from replaceme_core.engine.model.load import load_model, load_tokenizer, stored_weights
from replaceme_core.errors import BrokenModel, InvalidInput, OutOfMemory, ReplaceMeError, UnsafeModel, UnsupportedFamily
from replaceme_core.families.resolve import resolve
from replaceme_core.hub.model_config import read_outline
from replaceme_core.request.spec import ComputeSpec, Loading, Quantization
from tests.fixtures.models.tiny import VARIANTS, Variant, save_tiny, token_ids


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "model", dtype=torch.bfloat16)


def change_config(directory: Path, **values: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_sound_model(directory: Path) -> None:
    assert read_outline(directory).blocks == 6
    assert stored_weights(directory).dtype == torch.bfloat16
    model = load_model(directory, dtype=torch.float32, device="cpu")
    assert model.dtype == torch.float32
    assert not model.training
    assert load_tokenizer(directory)("a")["input_ids"]


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"model_type": "gpt"}, UnsupportedFamily, "'gpt' is not supported; supported: falcon, gemma"),
        ({"model_type": "mamba"}, UnsupportedFamily, "'mamba' is not supported: it has no attention"),
        ({"model_type": None}, UnsupportedFamily, "no model_type"),
        ({"auto_map": {"AutoModel": "x.Y"}}, UnsafeModel, "'auto_map', which can run code"),
        ({"_attn_implementation": "org/kernel"}, UnsafeModel, "_attn_implementation"),
        ({"_attn_implementation_internal": "x"}, UnsafeModel, "_attn_implementation_internal"),
        ({"quantization_config": {"quant_method": "gptq"}}, UnsupportedFamily, "quantised"),
        ({"num_hidden_layers": "6"}, UnsafeModel, "whole numbers"),
        ({"num_hidden_layers": 1}, UnsupportedFamily, "at least 2"),
        ({"num_labels": 10**12}, UnsafeModel, "a language model has none, so leave it out"),
        ({"num_labels": "2"}, UnsafeModel, "num_labels as '2'"),
    ],
)
def test_a_config_that_is_refused(
    directory: Path, values: dict[str, object], error: type[ReplaceMeError], message: str
) -> None:
    change_config(directory, **values)
    with pytest.raises(error, match=message):
        read_outline(directory)


def test_no_config(tmp_path: Path) -> None:
    with pytest.raises(BrokenModel, match=r"has no config\.json"):
        read_outline(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(BrokenModel, match="not valid JSON"):
        read_outline(tmp_path)


def test_pickles_are_refused(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(UnsafeModel, match=r"only pytorch_model\.bin.*must be safetensors"):
        read_outline(directory)


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.999])
def test_truncated_weights(directory: Path, keep: float) -> None:
    path = directory / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(keep if keep >= 1 else keep * len(content))])
    with pytest.raises(BrokenModel, match=r"model\.safetensors is truncated or damaged"):
        stored_weights(directory)


def test_a_missing_weight_file(directory: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BrokenModel, match=r"the index names model-00001-of-00002\.safetensors, which is missing"):
        stored_weights(directory)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "index.json is not valid JSON"),
        ("[]", "index.json must hold a JSON object, not list"),
        ("{}", "no usable weight_map"),
        ('{"weight_map": 3}', "no usable weight_map"),
        ('{"weight_map": {}}', "no usable weight_map"),
        ('{"weight_map": {"a": ["model.safetensors"]}}', "no usable weight_map"),
    ],
)
def test_a_bad_index(directory: Path, index: str, message: str) -> None:
    (directory / "model.safetensors.index.json").write_text(index)
    with pytest.raises(BrokenModel, match=message):
        stored_weights(directory)


@pytest.mark.parametrize(
    ("values", "message"),
    [({"num_hidden_layers": 7}, "missing keys model.layers.6"), ({"intermediate_size": 44}, "mismatched keys")],
)
def test_weights_that_do_not_fit_the_config(directory: Path, values: dict[str, object], message: str) -> None:
    change_config(directory, **values)
    with pytest.raises(BrokenModel, match=message):
        load_model(directory, dtype=torch.float32, device="cpu")


def test_weights_of_an_unknown_kind(directory: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(3, dtype=torch.int8)}, directory / "model.safetensors")
    with pytest.raises(BrokenModel, match="a is stored as I8"):
        stored_weights(directory)


def test_no_tokenizer(directory: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).unlink()
    with pytest.raises(BrokenModel, match="the tokenizer cannot be loaded"):
        load_tokenizer(directory)


@pytest.mark.parametrize(
    ("named", "keeps", "message"),
    [
        ("RagTokenizer", True, "is a RagTokenizer, which is none"),  # it holds two tokenizers
        ("GPT2Tokenizer", False, "makes no tokens of a text"),  # without its vocabulary
        ("LlamaTokenizer", False, "makes no tokens of a text"),
    ],
)
def test_a_class_without_a_tokenizer(directory: Path, named: str, keeps: bool, message: str) -> None:
    config = directory / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "tokenizer_class": named}))
    if not keeps:
        (directory / "tokenizer.json").unlink()
    with pytest.raises(BrokenModel, match=f"the tokenizer {message}; use the one that was saved with the model"):
        load_tokenizer(directory)


def test_out_of_memory_is_not_a_broken_model(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's allocator on the host raises a plain RuntimeError; this is one that it really raises."""

    def too_much(*_: object, **__: object) -> object:
        return torch.empty(2**60)

    monkeypatch.setattr("replaceme_core.engine.model.load.AutoModelForCausalLM.from_pretrained", too_much)
    with pytest.raises(OutOfMemory, match="not enough memory to load the model"):
        load_model(directory, dtype=torch.float32, device="cpu")


LARGE_ENOUGH = {"hidden_size": 64, "intermediate_size": 128}


def compute(quantization: Quantization | None) -> ComputeSpec:
    return ComputeSpec(device="cpu", dtype="float32", loading=Loading.WHOLE, quantization=quantization)


def variant(family: str) -> Variant:
    return next(one for one in VARIANTS if one.model_type == family)


@pytest.mark.parametrize(("quantization", "error"), [(Quantization.FOUR_BITS, 0.5), (Quantization.EIGHT_BITS, 0.05)])
def test_the_blocks_hold_fewer_bits_and_do_nearly_the_same(
    tmp_path: Path, quantization: Quantization, error: float
) -> None:
    directory = save_tiny(tmp_path / "model", **LARGE_ENOUGH)
    full = load_model(directory, dtype=torch.float32, device="cpu")
    model = open_for_capture(directory, dtype=torch.float32, compute=compute(quantization))
    assert not [module for module in resolve(model).blocks.modules() if type(module) is nn.Linear]
    held, whole = (sum(each.nbytes for each in resolve(one).blocks.parameters()) for one in (model, full))
    assert held < 0.35 * whole, "of float32, in which a block of this size has large norms and scales"
    ids = token_ids(2, 24)
    with torch.inference_mode():
        runners = [BlockRunner(resolved=resolve(one)) for one in (model, full)]
        runners[0].prove(ids)
        streams = [runner.run(0, runner.enter(ids)) for runner in runners]
    difference = float((streams[0] - streams[1]).norm() / streams[1].norm())
    assert 0 < difference < error


def test_full_weights_unless_asked_otherwise(tmp_path: Path) -> None:
    model = open_for_capture(save_tiny(tmp_path / "model"), dtype=torch.float32, compute=compute(None))
    assert any(type(module) is nn.Linear for module in resolve(model).blocks.modules())


@pytest.mark.parametrize("family", ["gpt2", "mixtral"])
def test_a_family_whose_weights_are_not_in_linear_layers(tmp_path: Path, family: str) -> None:
    directory = save_tiny(tmp_path / "model", variant=variant(family))
    with pytest.raises(InvalidInput, match=r"leave compute\.quantization out") as caught:
        open_for_capture(directory, dtype=torch.float32, compute=compute(Quantization.FOUR_BITS))
    assert caught.value.field == "compute.quantization"


def test_without_the_library_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(InvalidInput, match=r"install replaceme\[quantized\]"):
        open_for_capture(tmp_path, dtype=torch.float32, compute=compute(Quantization.EIGHT_BITS))
