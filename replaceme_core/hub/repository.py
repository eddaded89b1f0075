"""What is read and downloaded of a model's repository. Its list of files is untrusted input. Imports no torch."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from replaceme_core.errors import BrokenModel
from replaceme_core.hub.model_files import (
    INDEX,
    SINGLE,
    WEIGHTS_SUFFIX,
    check_size,
    choose_weights,
    side_names,
)
from replaceme_core.hub.port import Hub, Snapshot
from replaceme_core.hub.safetensors_header import TensorPlace, read_headers

READ_AT_ONCE = 8
"""Headers, while a model of 671 billion parameters has 163 files; the Hub takes a tenth of a second for each."""
MOST_WEIGHT_FILES = 1_000


def check_listing(snapshot: Snapshot) -> None:
    """Raise `UnsafeModel` without weights or with pickles only, and `BrokenModel` for files that are too large.

    The index is not read: at submission that would take a download, and a large one would hold up other requests.
    """
    if not snapshot.has(INDEX):
        choose_weights(snapshot.sizes, None)
    for name in {INDEX, *side_names(snapshot.sizes)} & snapshot.sizes.keys():
        check_size(name, snapshot.sizes[name])


def files_to_download(snapshot: Snapshot, hub: Hub) -> tuple[str, ...]:
    """The model's weights, config, tokenizer, card and terms, sorted. Reads the index.

    Raises as `check_listing` and `choose_weights` do, and `BrokenModel` for weights in very many files.
    """
    check_listing(snapshot)
    index = hub.read_json(snapshot, INDEX) if snapshot.has(INDEX) else None
    weights = choose_weights(snapshot.sizes, index)
    if len(weights) > MOST_WEIGHT_FILES:
        raise BrokenModel(
            f"the weights are in {len(weights):,} files, more than {MOST_WEIGHT_FILES:,}; save them in larger ones",
            field="model",
            value=len(weights),
        )
    rest = side_names(snapshot.sizes)
    return tuple(sorted([*weights, *rest, *([INDEX] if index is not None and weights != (SINGLE,) else [])]))


def stored_tensors(snapshot: Snapshot, hub: Hub, files: Sequence[str]) -> list[TensorPlace]:
    """The tensors of the weights among `files`, from their headers, without the data. Raises as `read_headers` does."""
    sizes = {name: snapshot.sizes[name] for name in files if name.endswith(WEIGHTS_SUFFIX)}
    with ThreadPoolExecutor(max_workers=READ_AT_ONCE, thread_name_prefix="headers") as pool:
        return read_headers(
            sizes, lambda name, start, end: hub.read_range(snapshot, name, start=start, end=end), map_over=pool.map
        )
