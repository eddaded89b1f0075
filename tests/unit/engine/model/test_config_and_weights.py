"""A config that is not that of the weights is refused before anything is built, and weights that are no numbers."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from replaceme_core.engine.model.lazy_model import load_block, load_lazily
from replaceme_core.engine.model.load import load_model, stored_weights
from replaceme_core.engine.pipeline import compress
from replaceme_core.errors import BrokenModel
from tests.fixtures.models.pipeline import request
from tests.fixtures.models.recorder import Recorder
from tests.fixtures.models.tiny import BLOCKS, VARIANTS, save_tiny

WEIGHTS = "model.safetensors"
BY_NAME = {variant.name: variant for variant in VARIANTS}


def change_config(directory: Path, **values: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def change_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    save_file(change(load_file(directory / WEIGHTS)), directory / WEIGHTS, metadata={"format": "pt"})


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "model")


@pytest.mark.parametrize("name", ["llama", "gpt2", "falcon-7b", "opt", "neox-parallel"])
def test_weights_that_were_saved_without_the_head(name: str, tmp_path: Path) -> None:
    """Names begin one level below, as in the first checkpoints of gpt2."""
    directory = save_tiny(tmp_path / "model", variant=BY_NAME[name], tie_word_embeddings=True)
    change_weights(directory, lambda weights: {each.partition(".")[2]: values for each, values in weights.items()})
    stored_weights(directory)
    load_model(directory, dtype=torch.float32, device="cpu")


@pytest.mark.parametrize("blocks", [BLOCKS - 1, BLOCKS + 1, 10**7])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_number_of_blocks_that_is_not_there(name: str, blocks: int, tmp_path: Path) -> None:
    directory = save_tiny(tmp_path / "model", variant=BY_NAME[name])
    key = "n_layer" if name == "gpt2" else "num_hidden_layers"
    change_config(directory, **{key: blocks})
    start = time.process_time()
    with pytest.raises(BrokenModel, match=f"gives {key} as {blocks:,}, and the weights have 6 blocks"):
        stored_weights(directory)
    assert time.process_time() - start < 0.5


def test_a_job_with_fewer_blocks_than_there_are_is_refused(directory: Path) -> None:
    change_config(directory, num_hidden_layers=3)
    one = request(directory)
    with pytest.raises(BrokenModel, match="the weights have 6 blocks"):
        compress(one, Recorder())
    assert not Path(one.output_directory).exists()


def test_a_block_that_is_missing(directory: Path) -> None:
    change_weights(directory, lambda weights: {name.replace("s.2.", "s.9."): weights[name] for name in weights})
    with pytest.raises(BrokenModel, match="blocks up to 9, but none with the number 2"):
        stored_weights(directory)


def test_weights_without_blocks(directory: Path) -> None:
    change_weights(directory, lambda _: {"model.embed_tokens.weight": torch.zeros(260, 16)})
    with pytest.raises(BrokenModel, match="the weights have 0 blocks"):
        stored_weights(directory)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"vocab_size": 10**9},
            "vocabulary as 1000000000 and the width as 16, and model.embed_tokens.weight is 260 x 16",
        ),
        ({"vocab_size": 259}, "vocabulary as 259"),
        ({"hidden_size": 2**40}, "the width as 1099511627776"),
        ({"intermediate_size": 10**12}, r"describes a model of [\d,]{15,} values, and the files hold"),
        ({"head_dim": 10**9}, "values, and the files hold"),
        ({"num_attention_heads": 0}, r"config\.json"),
    ],
)
def test_sizes_that_are_not_those_of_the_weights(directory: Path, values: dict[str, object], message: str) -> None:
    change_config(directory, **values)
    start = time.process_time()
    with pytest.raises(BrokenModel, match=message):
        stored_weights(directory)
    assert time.process_time() - start < 2


def test_an_embedding_that_is_narrower_than_the_stream(tmp_path: Path) -> None:
    directory = save_tiny(tmp_path / "model", variant=BY_NAME["opt-plain"])
    change_config(directory, word_embed_proj_dim=16)
    with pytest.raises(BrokenModel, match=r"embed_tokens\.weight is 260 x 8"):
        stored_weights(directory)


def read_whole(directory: Path) -> None:
    load_model(directory, dtype=torch.float32, device="cpu")


def read_lazily(directory: Path) -> None:
    model = load_lazily(directory, dtype=torch.float32, device="cpu")
    for index in range(BLOCKS):
        load_block(model.get_submodule(f"model.layers.{index}"))


@pytest.mark.parametrize("read", [read_whole, read_lazily])
@pytest.mark.parametrize(
    ("value", "dtype"),
    [(float("nan"), torch.float32), (float("inf"), torch.bfloat16), (float("-inf"), torch.float16)],
)
@pytest.mark.parametrize(
    ("variant", "tensor"),
    [
        ("llama", "model.layers.3.mlp.up_proj.weight"),
        ("llama", "model.embed_tokens.weight"),
        ("mixtral", "model.layers.5.mlp.experts.2.w1.weight"),
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


def test_values_that_are_too_large_for_the_computation_are_no_fault_of_the_weights(directory: Path) -> None:
    def enlarge(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {**weights, "lm_head.weight": weights["lm_head.weight"] * 1e30}

    change_weights(directory, enlarge)
    model = load_model(directory, dtype=torch.float16, device="cpu")
    assert bool(model.get_parameter("lm_head.weight").isinf().any())
