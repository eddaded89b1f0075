"""Safetensors files read and written one tensor at a time.

The library maps a whole file into the address space. Here a tensor is read on request and nothing else is held, so that
a model may be larger than memory. Format: 8 bytes with the length of a JSON header, the
header, the data (https://github.com/huggingface/safetensors).
"""

import json
import math
import os
import shutil
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from replaceme_core.errors import BrokenModel
from replaceme_core.json_values import shorten

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
LONGEST_HEADER = 16 * 2**20
"""Bytes: about 150,000 tensors in one file. The library's limit of 100 MB takes a gigabyte to parse."""
_COPY_BYTES = 16 * 2**20


@dataclass(kw_only=True, eq=False)
class StoredTensor:
    """The place of a tensor in a file, bytes `offset` to `end`. `[...]` reads it, as with a slice of the library."""

    name: str
    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    end: int
    known_finite: bool = False
    """Set by the first read: a block may be read many times."""

    def __getitem__(self, _: object) -> torch.Tensor:
        return self.read()

    def read(self) -> torch.Tensor:
        """On the host, in the stored dtype. Raises `BrokenModel`, also for values that are not finite."""
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
        if not self.known_finite and values.is_floating_point() and not all_finite(values):
            raise BrokenModel(
                f"{self.name} in {self.path.name} has values that are NaN or infinite; use weights without these",
                field="model",
                value=self.name,
            )
        self.known_finite = True
        return values

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


def all_finite(values: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite, from minimum and maximum, which NaN reaches as well.

    `isfinite` of a whole embedding takes six times as long, and more memory than a lazily loaded model.
    """
    return values.numel() == 0 or bool(torch.isfinite(torch.stack(torch.aminmax(values))).all())


def stored_tensors(path: Path) -> list[StoredTensor]:
    """The tensors in the header of one file, checked as the library checks them, and more. Raises `BrokenModel`.

    The tensors fill the file: none overlap, and nothing is between or after them.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= size - 8:
            raise _damaged(path, "the header is truncated")
        if length > LONGEST_HEADER:
            raise BrokenModel(
                f"the header of {path.name} has {length:,} bytes, more than {LONGEST_HEADER:,}; save the model in "
                "several files",
                field="model",
                value=path.name,
            )
        raw = file.read(length)
    try:
        rows = _header(raw)
        found = [_stored(path, name, row, first=8 + length, size=size) for name, row in rows.items()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, f"the header is not valid: {error}") from None
    at = 8 + length
    for stored in sorted(found, key=lambda one: (one.offset, one.end)):
        if stored.offset != at:
            what = "overlaps another tensor" if stored.offset < at else "comes after a hole"
            raise _damaged(path, f"{stored.name} {what}")
        at = stored.end
    if at != size:
        raise _damaged(path, f"{size - at:,} bytes follow the last tensor")
    return found


def _header(raw: bytes) -> dict[str, Mapping[str, object]]:
    """The tensors' rows by name. Raises `ValueError` and others for what is no valid header."""
    header = json.loads(raw.decode("utf-8"), object_pairs_hook=_without_repeats)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata are not text")
    for name in header:
        name.encode()  # an escape can give half a character, which no file name or message can carry
    rows: dict[str, Mapping[str, object]] = header
    return rows


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object of JSON. Of a key that comes twice one reader takes the first value, another the last."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is given twice")
    return found


def _stored(path: Path, name: str, row: Mapping[str, object], *, first: int, size: int) -> StoredTensor:
    dtype, (begin, end) = row["dtype"], _whole_numbers(row["data_offsets"])
    if not isinstance(dtype, str):
        raise TypeError(f"the dtype of {name} is not text")
    one = StoredTensor(
        name=name,
        path=path,
        dtype=dtype,
        shape=tuple(_whole_numbers(row["shape"])),
        offset=first + begin,
        end=first + end,
    )
    if not begin <= end <= size - first:
        raise ValueError(f"{name} ends after the file does")
    if dtype in _DTYPES and end - begin != one.numel * _DTYPES[dtype].itemsize:
        raise ValueError(f"the length of {name} does not match its shape")
    return one


def _whole_numbers(value: object) -> list[int]:
    if not isinstance(value, list) or not all(type(one) is int and one >= 0 for one in value):
        raise TypeError("shapes and offsets are lists of whole numbers that are not negative")
    return value


def _damaged(path: Path, what: str) -> BrokenModel:
    shown = shorten(what, 300)
    return BrokenModel(f"{path.name} is truncated or damaged ({shown}); download it or save it again", field="model")


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
