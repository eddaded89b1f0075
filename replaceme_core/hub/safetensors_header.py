"""The header of a safetensors file: which tensors it has, and where. Checked as the library checks it, and more.

Imports no torch and opens no file, so that the API can read headers from the Hub. Format: 8 bytes with the length of a
JSON header, the header, the data (https://github.com/huggingface/safetensors).
"""

import math
import struct
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any

from replaceme_core.errors import BrokenModel
from replaceme_core.wording import distinct, read_json, shorten

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
    "F8_E4M3": 1,
    "BOOL": 1,
}
"""Of the dtypes that this product can read: bytes of one value."""
LENGTH_BYTES = 8
FIRST_BYTES = 100_000
"""Of a file, in the first read: they hold the whole header of nearly all files."""
MOST_BYTES = 16 * 2**20
MOST_TENSORS = 150_000
"""Of the headers of a model, all its files together. DeepSeek-V3, one of the largest, has 91,000 tensors in 12 MB."""
_MOST_DIMENSIONS = 16
_LEVELS = 4


@dataclass(kw_only=True, eq=False, slots=True)
class TensorPlace:
    """A tensor in a file of weights: its data are the bytes `offset` to `end` of `file`."""

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    end: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


def read_headers(
    sizes: Mapping[str, int],
    read: Callable[[str, int, int], bytes],
    *,
    map_over: Callable[[Callable[[str], bytes], Iterable[str]], Iterable[bytes]] = map,
) -> list[TensorPlace]:
    """The tensors of all weight files of a model. `sizes` has the bytes of each file by name.

    `read` gives the bytes of a file from one place to another, which is not included, or to the file's end. `map_over`
    may be that of a pool of threads, which then read; one header after the other is parsed, and no other is kept.
    Raises `BrokenModel` for what is damaged, for a tensor in two files, and for headers with more than `MOST_BYTES` or
    `MOST_TENSORS`.
    """
    taken, lock = 0, Lock()

    def fetch(name: str) -> bytes:
        nonlocal taken
        raw = read(name, 0, FIRST_BYTES)
        end = LENGTH_BYTES + _header_length(raw, name=name, size=sizes[name])
        with lock:
            taken += end
            if taken > MOST_BYTES:
                raise _too_large(f"more than {MOST_BYTES:,} bytes", name)
        if end > len(raw):
            raw += read(name, len(raw), end)
        return raw[LENGTH_BYTES:end]

    found: dict[str, TensorPlace] = {}
    brackets = 0
    for name, raw in zip(sizes, map_over(fetch, sizes), strict=True):
        brackets += raw.count(b"{") + raw.count(b"[")
        if brackets > 3 * MOST_TENSORS:  # a tensor has three, and each takes memory, whatever is between them
            raise _too_large(f"more than {MOST_TENSORS:,} tensors", name)
        for one in _parse(raw, name=name, size=sizes[name]):
            other = found.setdefault(one.name, one)
            if other is not one:
                raise BrokenModel(f"{one.name} is in {other.file} and in {name}; remove one of them")
    return list(found.values())


def _header_length(start: bytes, *, name: str, size: int) -> int:
    """The bytes of the header of a file that begins with `start`."""
    length = struct.unpack("<Q", start[:LENGTH_BYTES])[0] if len(start) >= LENGTH_BYTES else 0
    if not 2 <= length <= size - LENGTH_BYTES:
        raise damaged(name, "the header is truncated")
    return int(length)


def _parse(raw: bytes, *, name: str, size: int) -> list[TensorPlace]:
    """The tensors in the header `raw` of a file. They fill it: none overlap, and nothing is between or after them."""
    first = LENGTH_BYTES + len(raw)
    try:
        found = [_place(tensor, row, file=name, first=first, size=size) for tensor, row in _rows(raw).items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
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
    return BrokenModel(f"{name} is truncated or damaged ({shown}); download it or save it again")


def _too_large(what: str, name: str) -> BrokenModel:
    return BrokenModel(
        f"the headers of the weights have {what}, counted up to {name}; save the model with fewer tensors", value=name
    )


def _rows(raw: bytes) -> dict[str, Mapping[str, object]]:
    """The tensors' rows by name. Raises `ValueError` and others for what is no valid header."""
    header: Any = read_json(raw.decode("utf-8"), levels=_LEVELS, object_pairs_hook=distinct)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata are not text")
    rows: dict[str, Mapping[str, object]] = header
    return rows


def _place(name: str, row: Mapping[str, object], *, file: str, first: int, size: int) -> TensorPlace:
    dtype, (begin, end) = row["dtype"], _whole_numbers(row["data_offsets"])
    if not isinstance(dtype, str):
        raise TypeError(f"the dtype of {name} is not text")
    one = TensorPlace(
        name=name,
        file=file,
        dtype=sys.intern(dtype),
        shape=tuple(_whole_numbers(row["shape"])),
        offset=first + begin,
        end=first + end,
    )
    if not begin <= end <= size - first:
        raise ValueError(f"{name} ends after the file does")
    if dtype in ITEM_BYTES and end - begin != one.numel * ITEM_BYTES[dtype]:
        raise ValueError(f"the length of {name} does not match its shape")
    return one


def _whole_numbers(value: object) -> list[int]:
    if not isinstance(value, list) or len(value) > _MOST_DIMENSIONS:
        raise TypeError(f"shapes and offsets are lists of at most {_MOST_DIMENSIONS} numbers")
    if not all(type(one) is int and one >= 0 for one in value):
        raise TypeError("shapes and offsets are whole numbers that are not negative")
    return value
