"""Which files are the model: all that reads weights agrees. The corpus in `fixtures/hostile` has more refusals."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from replaceme_core.engine.activations.cache import model_digest
from replaceme_core.engine.model.lazy_model import load_block, load_lazily
from replaceme_core.engine.model.load import load_model, load_tokenizer, stored_weights
from replaceme_core.errors import InvalidInput, UnsafeModel
from replaceme_core.hub.model_config import read_outline
from replaceme_core.hub.model_files import side_files
from tests.fixtures.models.tiny import BLOCKS, save_tiny

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def whole(directory: Path) -> object:
    return load_model(directory, dtype=torch.float32, device="cpu")


def lazily(directory: Path) -> object:
    return load_lazily(directory, dtype=torch.float32, device="cpu")


READERS: tuple[Callable[[Path], object], ...] = (stored_weights, model_digest, whole, lazily)
"""All that reads weights: each decides alike which files these are."""


def refused_by_all(directory: Path, error: type[InvalidInput], message: str) -> None:
    for read in (read_outline, *READERS):
        with pytest.raises(error, match=message):
            read(directory)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "model")


def write_index(directory: Path, name: str) -> None:
    names = load_file(directory / WEIGHTS) if (directory / WEIGHTS).exists() else {"a": None}
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, name)}))


def split(directory: Path) -> None:
    """Store the model's weights in two files with an index."""
    weights = load_file(directory / WEIGHTS)
    weight_map = {name: f"model-0000{1 + place % 2}-of-00002.safetensors" for place, name in enumerate(weights)}
    for file in set(weight_map.values()):
        save_file(
            {name: weights[name] for name in weights if weight_map[name] == file}, directory / file, {"format": "pt"}
        )
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (directory / WEIGHTS).unlink()


def hub_cache(root: Path, name: str, model: Path, *, shared: bool = False) -> Path:
    """A snapshot as the Hub's client keeps it: links to blobs, which may be links to a store of all repositories."""
    repository = root / f"models--org--{name}"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, file in enumerate(sorted(path for path in model.rglob("*") if path.is_file())):
        blob = repository / "blobs" / f"{number:064x}"
        if shared:
            store = root / "blobs" / "00" / f"{name}{number}"
            store.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, store)
            blob.symlink_to(f"../../blobs/00/{store.name}")
        else:
            shutil.copyfile(file, blob)
        link = snapshot / file.relative_to(model)
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


def test_an_index_beside_other_weights_poisons_no_cache(directory: Path) -> None:
    """The index names the honest weights, so that a digest of these would be found; transformers loads the others."""
    digest = model_digest(directory)
    (directory / WEIGHTS).rename(directory / "honest.safetensors")
    write_index(directory, "honest.safetensors")
    assert model_digest(directory) == digest
    save_file(
        {name: values + 1 for name, values in load_file(directory / "honest.safetensors").items()}, directory / WEIGHTS
    )
    refused_by_all(directory, UnsafeModel, r"not clear which are its weights; remove one")


def test_all_read_the_files_of_the_index(directory: Path) -> None:
    before = {
        name: values.clone()
        for name, values in load_model(directory, dtype=torch.float32, device="cpu").named_parameters()
    }
    split(directory)
    save_file({"a": torch.zeros(3)}, directory / "adapter_model.safetensors")  # not in the index: not read
    (directory / "model.safetensors.index.fp16.json").write_text('{"weight_map": {"a": "../x.safetensors"}}')
    assert stored_weights(directory).values == sum(values.numel() for values in before.values())
    loaded = load_model(directory, dtype=torch.float32, device="cpu")
    assert all(torch.equal(values, before[name]) for name, values in loaded.named_parameters())
    lazy = load_lazily(directory, dtype=torch.float32, device="cpu")
    for index in range(BLOCKS):
        for name, values in load_block(lazy.get_submodule(f"model.layers.{index}")).named_parameters():
            assert torch.equal(values, before[f"model.layers.{index}.{name}"])
    digest = model_digest(directory)
    (directory / "adapter_model.safetensors").unlink()
    assert model_digest(directory) == digest


@pytest.mark.parametrize("shared", [False, True])
def test_a_snapshot_in_a_cache_of_the_hub(directory: Path, tmp_path: Path, shared: bool) -> None:
    template = directory / "additional_chat_templates" / "rag.jinja"
    template.parent.mkdir()
    template.touch()
    snapshot = hub_cache(tmp_path / "cache", "mine", directory, shared=shared)
    assert snapshot / template.relative_to(directory) in side_files(snapshot)
    for read in (read_outline, load_tokenizer, *READERS):
        read(snapshot)
    assert model_digest(snapshot) == model_digest(directory)


@pytest.mark.parametrize(
    ("shared", "through"), [(False, "snapshots"), (False, "winding"), (True, "blobs"), (True, "store")]
)
def test_weights_of_a_neighbour_in_the_cache(directory: Path, tmp_path: Path, shared: bool, through: str) -> None:
    snapshot = hub_cache(tmp_path / "cache", "mine", directory, shared=shared)
    other = hub_cache(tmp_path / "cache", "private", directory, shared=shared)
    target = {
        "snapshots": other / WEIGHTS,
        "blobs": other.parent.parent / "blobs" / (other / WEIGHTS).readlink().name,
        "store": (other / WEIGHTS).resolve(),
        "winding": Path("../../blobs/../../models--org--private/snapshots") / other.name / WEIGHTS,
    }[through]
    (snapshot / WEIGHTS).unlink()
    (snapshot / WEIGHTS).symlink_to(target)
    refused_by_all(snapshot, UnsafeModel, r"model\.safetensors is a link that leads out")


@pytest.mark.parametrize("named", [False, True])
def test_names_that_transformers_prefers(directory: Path, named: bool) -> None:
    """It loads files of this name before all others, with other code, and whether or not an index names them."""
    honest = load_file(directory / WEIGHTS)
    other = directory / "shard-00001-model-00001-of-00001.safetensors"
    save_file({name: values + (0 if named else 1) for name, values in honest.items()}, other, {"format": "pt"})
    if named:
        (directory / WEIGHTS).unlink()
        (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(honest, other.name)}))
    loaded = load_model(directory, dtype=torch.float32, device="cpu")
    assert all(torch.equal(values, honest[name]) for name, values in loaded.named_parameters())


def test_an_index_of_the_one_file(directory: Path) -> None:
    write_index(directory, WEIGHTS)
    for read in READERS:
        read(directory)
