"""Safetensors files read and written one tensor at a time.

The library maps a whole file into the address space. Here a tensor is read on request and nothing else is held, so that
a model may be larger than memory. Format: 8 bytes with the length of a JSON header, the
header, the data (https://github.com/huggingface/safetensors).
"""

import json
import os
import shutil
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from replaceme_core.errors import BrokenModel

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_LONGEST_HEADER = 100_000_000  # bytes; the limit of the library
_COPY_BYTES = 16 * 2**20


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """The place of a tensor in a file. `[...]` reads it, as with a slice of the library."""

    name: str
    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    def __getitem__(self, _: object) -> torch.Tensor:
        return self.read()

    def read(self) -> torch.Tensor:
        """On the host, in the stored dtype. Raises `BrokenModel`."""
        values = torch.empty(self.shape, dtype=_DTYPES[self.dtype])
        view = memoryview(values.flatten().view(torch.uint8).numpy().data) if values.numel() else memoryview(b"")
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            done = 0
            while done < len(view):
                count = os.preadv(descriptor, [view[done:]], self.offset + done)
                if count == 0:
                    raise _damaged(self.path, f"the file ends within {self.name}")
                done += count
        finally:
            os.close(descriptor)
        return values

    @property
    def numel(self) -> int:
        return torch.Size(self.shape).numel()


def stored_tensors(path: Path) -> list[StoredTensor]:
    """The tensors in the header of one file, checked against the length of the file. Raises `BrokenModel`."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(_LONGEST_HEADER, size - 8):
            raise _damaged(path, "the header is truncated")
        raw = file.read(length)
    try:
        header = json.loads(raw)
        rows = [(str(name), row) for name, row in header.items() if name != "__metadata__"]
        found = [_stored(path, name, row, first=8 + length, size=size) for name, row in rows]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, f"the header is not valid: {error}") from None
    return found


def _stored(path: Path, name: str, row: Mapping[str, object], *, first: int, size: int) -> StoredTensor:
    shape, offsets = row["shape"], row["data_offsets"]
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
        raise TypeError(name)
    begin, end = (int(offset) for offset in offsets)
    dtype = str(row["dtype"])
    one = StoredTensor(
        name=name, path=path, dtype=dtype, shape=tuple(int(side) for side in shape), offset=first + begin
    )
    if not 0 <= begin <= end <= size - first or min(one.shape, default=0) < 0:
        raise _damaged(path, f"{name} ends after the file does")
    if dtype in _DTYPES and end - begin != one.numel * _DTYPES[dtype].itemsize:
        raise ValueError(f"the length of {name} does not match its shape")
    return one


def _damaged(path: Path, what: str) -> BrokenModel:
    return BrokenModel(f"{path.name} is truncated or damaged ({what}); download it or save it again", field="model")


@dataclass(kw_only=True)
class WeightsWriter:
    """Writes `model.safetensors`, or several files of at most `limit` bytes and their index, under `directory`.

    Data are written to disk as they come; the headers are known only at the end.
    """

    directory: Path
    limit: int
    _headers: list[dict[str, dict[str, object]]] = field(default_factory=list)
    _sizes: list[int] = field(default_factory=list)

    def add(self, name: str, values: torch.Tensor) -> None:
        """Append a tensor. One that is larger than the limit gets a file of its own."""
        values = values.detach().cpu().contiguous()
        if not self._sizes or (self._sizes[-1] and self._sizes[-1] + values.nbytes > self.limit):
            self._headers.append({})
            self._sizes.append(0)
        begin = self._sizes[-1]
        with self._data(len(self._sizes) - 1).open("ab") as file:
            if values.numel():
                file.write(values.flatten().view(torch.uint8).numpy().data)
        self._sizes[-1] = begin + values.nbytes
        self._headers[-1][name] = {
            "dtype": _NAMES[values.dtype],
            "shape": list(values.shape),
            "data_offsets": [begin, self._sizes[-1]],
        }

    def close(self) -> None:
        """Put the headers before the data, and name the files as `save_pretrained` does."""
        count = len(self._sizes)
        weight_map = {}
        for number, header in enumerate(self._headers):
            name = "model.safetensors" if count == 1 else f"model-{number + 1:05d}-of-{count:05d}.safetensors"
            raw = json.dumps({"__metadata__": {"format": "pt"}, **header}, separators=(",", ":")).encode()
            raw += b" " * (-len(raw) % 8)
            with (self.directory / name).open("xb") as target, self._data(number).open("rb") as source:
                target.write(struct.pack("<Q", len(raw)) + raw)
                shutil.copyfileobj(source, target, _COPY_BYTES)
            self._data(number).unlink()
            weight_map.update(dict.fromkeys(header, name))
        if count > 1:
            index = {"metadata": {"total_size": sum(self._sizes)}, "weight_map": weight_map}
            text = json.dumps(index, indent=2, sort_keys=True) + "\n"
            (self.directory / "model.safetensors.index.json").write_text(text, encoding="utf-8")

    def _data(self, number: int) -> Path:
        return self.directory / f"part-{number}.data"
