"""What the library writes is read, and what is written the library reads."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers.modeling_utils import str_to_torch_dtype

from replaceme_core.engine.model.safetensors_io import WeightsWriter, tensors_of
from replaceme_core.errors import BrokenModel
from replaceme_core.hub.safetensors_header import ITEM_BYTES

TENSORS = {
    "a.weight": torch.arange(12, dtype=torch.float32).view(3, 4),
    "b.weight": torch.arange(6, dtype=torch.float32).to(torch.bfloat16),
    "scalar": torch.tensor(3.5, dtype=torch.float16),
    "empty": torch.empty(0, 4),
    "step": torch.tensor([7]),
}


def test_tensors_of_the_library_are_read(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = {stored.name: stored for stored in tensors_of([tmp_path / "model.safetensors"])}
    assert found.keys() == TENSORS.keys()
    for name, stored in found.items():
        values = stored.read()
        assert torch.equal(values, TENSORS[name])
        assert values.dtype == TENSORS[name].dtype
        assert stored.shape == tuple(TENSORS[name].shape)


def test_all_dtypes_that_headers_are_checked_for_can_be_read() -> None:
    assert {name: str_to_torch_dtype[name].itemsize for name in ITEM_BYTES} == ITEM_BYTES


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


def write(path: Path, header: str | bytes | dict[str, object], *, data: int = 16) -> Path:
    """A file with this header and a number of bytes of data."""
    text = json.dumps(header) if isinstance(header, dict) else header
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(data))
    return path


def row(begin: int, end: int, **changes: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [(end - begin) // 4], "data_offsets": [begin, end], **changes}


ROW = json.dumps(row(0, 16))
HOSTILE = {
    "negative offset": {"a": row(0, 16, data_offsets=[-4, 12])},
    "shape that is no list": {"a": row(0, 16, shape=4)},
    "no offsets": {"a": {"dtype": "F32", "shape": [4]}},
    "three offsets": {"a": row(0, 16, data_offsets=[0, 16, 16])},
    "row that is no object": {"a": []},
    "hole in the middle": {"a": row(0, 4), "b": row(8, 16)},
    "bytes at the end": {"a": row(0, 8)},
    "no tensors, but bytes": {},
    "end before the start": {"a": row(0, 16, shape=[0], data_offsets=[16, 0])},
    "key twice in a row": f'{{"a": {ROW[:-1]}, "shape": [4]}}}}',
    "shape of many dimensions": {"a": row(0, 16, shape=[1] * 9999)},
    "text after it": f'{{"a": {ROW}}} x',
    "UTF-16": f'{{"a": {ROW}}}'.encode("utf-16-le"),
    "number with many digits": f'{{"a": {ROW.replace("[4]", "[" + "1" * 5000 + "]")}}}',
    "NaN": '{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 16]}}',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_an_invalid_header_is_refused_as_by_the_library(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "model.safetensors", HOSTILE[name])  # type: ignore[arg-type]
    with pytest.raises(SafetensorError):
        load_file(path)
    with pytest.raises(BrokenModel, match=r"model\.safetensors is truncated or damaged"):
        tensors_of([path])


def test_a_tensor_that_is_given_twice_is_refused(tmp_path: Path) -> None:
    """The library takes one of the two, and which one is not said."""
    path = write(tmp_path / "model.safetensors", f'{{"a": {ROW}, "a": {ROW}}}')
    with pytest.raises(BrokenModel, match="is given twice"):
        tensors_of([path])


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    files = [tmp_path / "model-00001-of-00002.safetensors", tmp_path / "model-00002-of-00002.safetensors"]
    for path in files:
        save_file({"a": torch.zeros(3)}, path)
    with pytest.raises(BrokenModel, match=r"a is in model-00001-of-00002\.safetensors and in model-00002"):
        tensors_of(files)
