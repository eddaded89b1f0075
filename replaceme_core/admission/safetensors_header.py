"""The header of a safetensors file: which tensors it has, and where. Checked as the library checks it, and more.

Imports no torch and opens no file, so that the API can read headers from the Hub. Format: 8 bytes with the length of a
JSON header, the header, the data (https://github.com/huggingface/safetensors).
"""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from replaceme_core.errors import BrokenModel
from replaceme_core.json_values import shorten

ITEM_BYTES: Mapping[str, int] = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
"""Of the dtypes that this product can read: bytes of one value."""
LENGTH_BYTES = 8
LONGEST_HEADER = 16 * 2**20
"""Bytes: about 150,000 tensors in one file. The library's limit of 100 MB takes a gigabyte to parse."""


@dataclass(frozen=True, kw_only=True)
class TensorPlace:
    """A tensor in a file: its data are the bytes `offset` to `end` of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    end: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


def header_length(start: bytes, *, name: str, size: int) -> int:
    """The bytes of the header of the file `name` with `size` bytes, which begins with `start`. Raises `BrokenModel`."""
    length = struct.unpack("<Q", start[:LENGTH_BYTES])[0] if len(start) >= LENGTH_BYTES else 0
    if not 2 <= length <= size - LENGTH_BYTES:
        raise damaged(name, "the header is truncated")
    if length > LONGEST_HEADER:
        raise BrokenModel(
            f"the header of {name} has {length:,} bytes, more than {LONGEST_HEADER:,}; save the model in several files",
            field="model",
            value=name,
        )
    return int(length)


def parse_header(raw: bytes, *, name: str, size: int) -> list[TensorPlace]:
    """The tensors in the header `raw` of the file `name` with `size` bytes. Raises `BrokenModel`.

    The tensors fill the file: none overlap, and nothing is between or after them.
    """
    first = LENGTH_BYTES + len(raw)
    try:
        found = [_place(tensor, row, first=first, size=size) for tensor, row in _rows(raw).items()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(name, f"the header is not valid: {error}") from None
    at = first
    for one in sorted(found, key=lambda one: (one.offset, one.end)):
        if one.offset != at:
            what = "overlaps another tensor" if one.offset < at else "comes after a hole"
            raise damaged(name, f"{one.name} {what}")
        at = one.end
    if at != size:
        raise damaged(name, f"{size - at:,} bytes follow the last tensor")
    return found


def damaged(name: str, what: str) -> BrokenModel:
    """The error for the file `name`."""
    shown = shorten(what, 300)
    return BrokenModel(f"{name} is truncated or damaged ({shown}); download it or save it again", field="model")


def _rows(raw: bytes) -> dict[str, Mapping[str, object]]:
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


def _place(name: str, row: Mapping[str, object], *, first: int, size: int) -> TensorPlace:
    dtype, (begin, end) = row["dtype"], _whole_numbers(row["data_offsets"])
    if not isinstance(dtype, str):
        raise TypeError(f"the dtype of {name} is not text")
    one = TensorPlace(
        name=name, dtype=dtype, shape=tuple(_whole_numbers(row["shape"])), offset=first + begin, end=first + end
    )
    if not begin <= end <= size - first:
        raise ValueError(f"{name} ends after the file does")
    if dtype in ITEM_BYTES and end - begin != one.numel * ITEM_BYTES[dtype]:
        raise ValueError(f"the length of {name} does not match its shape")
    return one


def _whole_numbers(value: object) -> list[int]:
    if not isinstance(value, list) or not all(type(one) is int and one >= 0 for one in value):
        raise TypeError("shapes and offsets are lists of whole numbers that are not negative")
    return value
