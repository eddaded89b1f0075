"""What may be loaded, and what is said of configs and weights that do not belong together."""

import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from replaceme_core.engine.model.block_runner import BlockRunner
from replaceme_core.engine.model.lazy_model import load_block, load_lazily, open_for_capture
from replaceme_core.engine.model.load import load_model, load_tokenizer, stored_weights
from replaceme_core.errors import BrokenModel, InvalidInput, OutOfMemory
from replaceme_core.families.resolve import resolve
from replaceme_core.hub.model_config import read_outline
from replaceme_core.request.spec import ComputeSpec, Loading, Quantization
from tests.fixtures.models.tiny import BLOCKS, BY_NAME, save_tiny, token_ids


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "model")


def change_config(directory: Path, **values: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_sound_model(tmp_path: Path) -> None:
    directory = save_tiny(tmp_path / "model", dtype=torch.bfloat16)
    assert read_outline(directory).blocks == 6
    assert stored_weights(directory).dtype == torch.bfloat16
    model = load_model(directory, dtype=torch.float32, device="cpu")
    assert model.dtype == torch.float32
    assert not model.training
    assert not model.use_kernels  # transformers 5.25 would take them from the Hub
    assert load_tokenizer(directory)("a")["input_ids"]


def test_weights_that_do_not_fit_the_config(directory: Path) -> None:
    change_config(directory, intermediate_size=44)
    with pytest.raises(BrokenModel, match="mismatched keys"):
        load_model(directory, dtype=torch.float32, device="cpu")


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


def compute(quantization: Quantization) -> ComputeSpec:
    return ComputeSpec(device="cpu", dtype="float32", loading=Loading.WHOLE, quantization=quantization)


@pytest.mark.parametrize(("quantization", "error"), [(Quantization.FOUR_BITS, 0.5), (Quantization.EIGHT_BITS, 0.05)])
def test_the_blocks_hold_fewer_bits_and_do_nearly_the_same(
    tmp_path: Path, quantization: Quantization, error: float
) -> None:
    directory = save_tiny(tmp_path / "model", num_hidden_layers=2, **LARGE_ENOUGH)
    full = load_model(directory, dtype=torch.float32, device="cpu")
    model = open_for_capture(directory, dtype=torch.float32, compute=compute(quantization))
    assert not [module for module in resolve(model).blocks.modules() if type(module) is nn.Linear]
    held, whole = (sum(each.nbytes for each in resolve(one).blocks.parameters()) for one in (model, full))
    assert held < 0.35 * whole, "of float32, in which a block of this size has large norms and scales"
    ids = token_ids(1, 8)
    with torch.inference_mode():
        runners = [BlockRunner(resolved=resolve(one)) for one in (model, full)]
        streams = [runner.run(0, runner.enter(ids)) for runner in runners]
    difference = float((streams[0] - streams[1]).norm() / streams[1].norm())
    assert 0 < difference < error


@pytest.mark.parametrize("name", ["gpt2", "mixtral"])
def test_a_family_whose_weights_are_not_in_linear_layers(tmp_path: Path, name: str) -> None:
    directory = save_tiny(tmp_path / "model", variant=BY_NAME[name])
    with pytest.raises(InvalidInput, match=r"leave compute\.quantization out") as caught:
        open_for_capture(directory, dtype=torch.float32, compute=compute(Quantization.FOUR_BITS))
    assert caught.value.field == "compute.quantization"


def test_without_the_library_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(InvalidInput, match=r"install replaceme\[quantized\]"):
        open_for_capture(tmp_path, dtype=torch.float32, compute=compute(Quantization.EIGHT_BITS))


WEIGHTS = "model.safetensors"


def change_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    save_file(change(load_file(directory / WEIGHTS)), directory / WEIGHTS, metadata={"format": "pt"})


@pytest.mark.parametrize("name", ["llama", "gpt2", "falcon-7b"])
def test_weights_that_were_saved_without_the_head(name: str, tmp_path: Path) -> None:
    """Names begin one level below, as in the first checkpoints of gpt2."""
    directory = save_tiny(tmp_path / "model", variant=BY_NAME[name], tie_word_embeddings=True)
    change_weights(directory, lambda weights: {each.partition(".")[2]: values for each, values in weights.items()})
    stored_weights(directory)
    load_model(directory, dtype=torch.float32, device="cpu")


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("llama", {"num_hidden_layers": 5}, "gives num_hidden_layers as 5, and the weights have 6 blocks"),
        ("gpt2", {"n_layer": 7}, "gives n_layer as 7, and the weights have 6 blocks"),
        ("llama", {"num_hidden_layers": 10**7}, "gives num_hidden_layers as 10,000,000, and the weights have 6 blocks"),
        ("opt-plain", {"word_embed_proj_dim": 16}, "embed_tokens.weight is 260 x 8"),
        ("llama", {"vocab_size": 258}, "gives the vocabulary as 258 and the width as 16"),
    ],
)
def test_a_config_of_other_weights_is_found_at_once(
    name: str, changes: dict[str, object], said: str, tmp_path: Path
) -> None:
    directory = save_tiny(tmp_path / "model", variant=BY_NAME[name])
    change_config(directory, **changes)
    start = time.process_time()
    with pytest.raises(BrokenModel, match=re.escape(said)):
        stored_weights(directory)
    assert time.process_time() - start < 2


def test_nothing_is_written_into_the_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_model(save_tiny(tmp_path / "model"), dtype=torch.float32, device="cpu")
    assert capfd.readouterr() == ("", ""), "such as a progress bar"


def read_whole(directory: Path) -> None:
    load_model(directory, dtype=torch.float32, device="cpu")


def read_lazily(directory: Path) -> None:
    model = load_lazily(directory, dtype=torch.float32, device="cpu")
    for index in range(BLOCKS):
        load_block(model.get_submodule(f"model.layers.{index}"))


@pytest.mark.parametrize("read", [read_whole, read_lazily])
@pytest.mark.parametrize(
    ("value", "dtype", "variant", "tensor"),
    [
        (float("nan"), torch.float32, "llama", "model.layers.3.mlp.up_proj.weight"),
        (float("inf"), torch.bfloat16, "llama", "model.embed_tokens.weight"),
        (float("-inf"), torch.float16, "mixtral", "model.layers.5.mlp.experts.2.w1.weight"),
    ],
)
def test_a_value_that_is_no_number_is_refused_with_its_tensor(
    read: Callable[[Path], None], value: float, dtype: torch.dtype, variant: str, tensor: str, tmp_path: Path
) -> None:
    directory = save_tiny(tmp_path / "model", variant=BY_NAME[variant], dtype=dtype)

    def spoil(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        name = tensor if tensor in weights else tensor.replace("mlp", "block_sparse_moe")
        weights[name][1, 2] = value
        return weights

    change_weights(directory, spoil)
    stored_weights(directory)
    with pytest.raises(BrokenModel, match=r"in model\.safetensors has values that are NaN or infinite") as caught:
        read(directory)
    assert str(caught.value.value).replace("block_sparse_moe", "mlp") == tensor


@pytest.mark.parametrize("read", [read_whole, read_lazily])
def test_an_expert_that_is_missing(read: Callable[[Path], None], tmp_path: Path) -> None:
    """Experts are stacked when they are read. Values that no one needs make up the number of all."""
    directory = save_tiny(tmp_path / "model", variant=BY_NAME["mixtral"])

    def rename(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {
            f"unused.{name}" if "layers.4." in name and ".experts." in name else name: weights[name] for name in weights
        }

    change_weights(directory, rename)
    stored_weights(directory)
    with pytest.raises(BrokenModel, match=r"do not match config\.json: missing keys"):
        read(directory)


def test_a_head_with_values_of_its_own_stays_although_the_config_ties_it(tmp_path: Path) -> None:
    directory = save_tiny(tmp_path / "model", variant=BY_NAME["llama-tied"])
    head = torch.randn(260, 16, generator=torch.Generator().manual_seed(1))
    change_weights(directory, lambda weights: {**weights, "lm_head.weight": head})
    logits = []
    for load in (load_model, load_lazily):
        model = load(directory, dtype=torch.float32, device="cpu")
        assert not model.config.tie_word_embeddings
        assert torch.equal(model.get_parameter("lm_head.weight"), head)
        with torch.inference_mode():
            logits.append(model(input_ids=token_ids(1, 8), use_cache=False).logits)
    assert torch.equal(*logits)


def test_values_that_are_too_large_for_the_computation_are_no_fault_of_the_weights(directory: Path) -> None:
    def enlarge(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {**weights, "lm_head.weight": weights["lm_head.weight"] * 1e30}

    change_weights(directory, enlarge)
    model = load_model(directory, dtype=torch.float16, device="cpu")
    assert bool(model.get_parameter("lm_head.weight").isinf().any())
