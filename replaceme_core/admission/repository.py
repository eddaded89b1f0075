"""Which files of a model's repository are downloaded. Its list of files is untrusted input. Imports no torch."""

from replaceme_core.admission.model_files import INDEX, SIDE_FILES, SINGLE, choose_weights
from replaceme_core.hub.port import Hub, Snapshot


def check_listing(snapshot: Snapshot) -> None:
    """Raise `UnsafeModel` if the list of files alone shows that there are no weights, or only pickles.

    The index is not read: at submission that would take a download, and a large one would hold up other requests.
    """
    if not snapshot.has(INDEX):
        choose_weights(_paths(snapshot), None)


def files_to_download(snapshot: Snapshot, hub: Hub) -> tuple[str, ...]:
    """The model's weights, config and tokenizer files, sorted. Reads the index. Raises as `choose_weights` does."""
    paths = _paths(snapshot)
    index = hub.read_json(snapshot, INDEX) if INDEX in paths else None
    weights = choose_weights(paths, index)
    beside = [path for path in SIDE_FILES if path in paths]
    return tuple(sorted([*weights, *beside, *([INDEX] if index is not None and weights != (SINGLE,) else [])]))


def _paths(snapshot: Snapshot) -> frozenset[str]:
    return frozenset(file.path for file in snapshot.files)
