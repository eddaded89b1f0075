"""What the library writes is read, and what is written the library reads."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from replaceme_core.errors import BrokenModel
from replaceme_core.models.safetensors_io import WeightsWriter, stored_tensors

TENSORS = {
    "a.weight": torch.arange(12, dtype=torch.float32).view(3, 4),
    "b.weight": torch.arange(6, dtype=torch.float32).to(torch.bfloat16),
    "scalar": torch.tensor(3.5, dtype=torch.float16),
    "empty": torch.empty(0, 4),
    "step": torch.tensor([7]),
}


def test_tensors_of_the_library_are_read(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = {stored.name: stored for stored in stored_tensors(tmp_path / "model.safetensors")}
    assert found.keys() == TENSORS.keys()
    for name, stored in found.items():
        values = stored.read()
        assert torch.equal(values, TENSORS[name])
        assert values.dtype == TENSORS[name].dtype
        assert stored.shape == tuple(TENSORS[name].shape)


def test_one_file_that_the_library_reads(tmp_path: Path) -> None:
    writer = WeightsWriter(directory=tmp_path, limit=1000)
    for name, values in TENSORS.items():
        writer.add(name, values)
    writer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], values) for name, values in TENSORS.items())


def test_files_of_bounded_size(tmp_path: Path) -> None:
    tensors = {f"t{index}": torch.full((10,), float(index)) for index in range(7)} | {"big": torch.zeros(100)}
    writer = WeightsWriter(directory=tmp_path, limit=100)
    for name, values in tensors.items():
        writer.add(name, values)
    writer.close()
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(values.nbytes for values in tensors.values())
    files = sorted(set(index["weight_map"].values()))
    assert files == [f"model-{number:05d}-of-00005.safetensors" for number in range(1, 6)]
    found = {name: values for file in files for name, values in load_file(tmp_path / file).items()}
    assert {name: index["weight_map"][name] for name in found} == index["weight_map"]
    assert all(torch.equal(found[name], values) for name, values in tensors.items())
    assert len(list(tmp_path.iterdir())) == 6


@pytest.mark.parametrize("keep", [0, 5, 12, 100, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(BrokenModel, match=r"model\.safetensors is truncated or damaged"):
        stored_tensors(path)


@pytest.mark.parametrize(
    "row",
    [
        {"dtype": "F32", "shape": [4], "data_offsets": [0, 12]},
        {"dtype": "F32", "shape": [4], "data_offsets": [-4, 12]},
        {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": 4, "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [4]},
        {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 16]},
        [],
    ],
)
def test_an_invalid_header_is_refused(tmp_path: Path, row: object) -> None:
    raw = json.dumps({"a": row}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(16))
    with pytest.raises(BrokenModel, match="truncated or damaged"):
        stored_tensors(tmp_path / "model.safetensors")
