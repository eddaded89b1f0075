"""The headers of a model's weight files, read from the Hub without the weights. Imports no torch."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from replaceme_core.admission.model_files import INDEX, choose_weights
from replaceme_core.admission.repository import check_listing
from replaceme_core.admission.safetensors_header import LENGTH_BYTES, TensorPlace, header_length, parse_header
from replaceme_core.errors import BrokenModel
from replaceme_core.hub.port import Hub, Snapshot

FIRST_BYTES = 100_000
"""Of a file, in the first request: they hold the whole header of nearly all files."""
AT_ONCE = 8
"""Requests; a model of 70 billion parameters has 30 files or more."""
MOST_FILES = 1_000
READABLE = ("F32", "BF16", "F16")


def read_headers(snapshot: Snapshot, hub: Hub) -> list[TensorPlace]:
    """All tensors of the model's weights. Raises `BrokenModel` for damaged files, and as `choose_weights` does."""
    check_listing(snapshot)
    index = hub.read_json(snapshot, INDEX) if snapshot.has(INDEX) else None
    names = choose_weights(frozenset(file.path for file in snapshot.files), index)
    if len(names) > MOST_FILES:
        raise BrokenModel(
            f"the weights are in {len(names):,} files, more than {MOST_FILES:,}; save the model in larger ones",
            field="model",
            value=len(names),
        )
    with ThreadPoolExecutor(max_workers=AT_ONCE, thread_name_prefix="headers") as pool:
        headers = list(pool.map(partial(_read_header, hub, snapshot), names))
    _check(names, headers)
    return [tensor for header in headers for tensor in header]


def _read_header(hub: Hub, snapshot: Snapshot, name: str) -> list[TensorPlace]:
    size = next(file.size for file in snapshot.files if file.path == name)
    first = hub.read_range(snapshot, name, start=0, end=FIRST_BYTES)
    end = LENGTH_BYTES + header_length(first, name=name, size=size)
    if end > len(first):
        first += hub.read_range(snapshot, name, start=len(first), end=end)
    return parse_header(first[LENGTH_BYTES:end], name=name, size=size)


def _check(names: Sequence[str], headers: Sequence[Sequence[TensorPlace]]) -> None:
    """Raise `BrokenModel` for a tensor in two files, and for one whose dtype cannot be read."""
    seen: dict[str, str] = {}
    for name, header in zip(names, headers, strict=True):
        for tensor in header:
            if tensor.name in seen:
                raise BrokenModel(
                    f"{tensor.name} is in {seen[tensor.name]} and in {name}; remove one of them", field="model"
                )
            if tensor.dtype not in READABLE:
                raise BrokenModel(
                    f"{name}: {tensor.name} is stored as {tensor.dtype}; F32, BF16 and F16 are supported",
                    field="model",
                )
            seen[tensor.name] = name
