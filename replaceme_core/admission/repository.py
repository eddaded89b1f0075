"""Which files of a model's repository are downloaded. Its list of files is untrusted input. Imports no torch."""

from replaceme_core.admission.model_files import INDEX, SINGLE, check_size, choose_weights, side_names
from replaceme_core.hub.port import Hub, Snapshot


def check_listing(snapshot: Snapshot) -> None:
    """Raise `UnsafeModel` without weights or with pickles only, and `BrokenModel` for files that are too large.

    The index is not read: at submission that would take a download, and a large one would hold up other requests.
    """
    paths = _paths(snapshot)
    if not snapshot.has(INDEX):
        choose_weights(paths, None)
    small = {INDEX, *side_names(paths)}
    for file in snapshot.files:
        if file.path in small:
            check_size(file.path, file.size)


def files_to_download(snapshot: Snapshot, hub: Hub) -> tuple[str, ...]:
    """The model's weights, config, tokenizer, card and terms, sorted. Reads the index.

    Raises as `check_listing` and `choose_weights` do.
    """
    check_listing(snapshot)
    paths = _paths(snapshot)
    index = hub.read_json(snapshot, INDEX) if INDEX in paths else None
    weights = choose_weights(paths, index)
    return tuple(
        sorted([*weights, *side_names(paths), *([INDEX] if index is not None and weights != (SINGLE,) else [])])
    )


def _paths(snapshot: Snapshot) -> frozenset[str]:
    return frozenset(file.path for file in snapshot.files)
