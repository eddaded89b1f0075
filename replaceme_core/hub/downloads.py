"""Downloads files of snapshots into the cache."""

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal

from huggingface_hub import hf_hub_url
from huggingface_hub.file_download import repo_folder_name

from replaceme_core.errors import RepositoryNotFound
from replaceme_core.hub.cache import Cache, Place
from replaceme_core.hub.fetch import fetch_blob
from replaceme_core.hub.port import RepositoryFile, Snapshot
from replaceme_core.hub.replies import hub_errors
from replaceme_core.hub.transfer import ByteCounter, fetch_all


class Downloads:
    """Files of the Hub at `endpoint`, in `cache`."""

    def __init__(self, endpoint: str, cache: Cache) -> None:
        self._endpoint = endpoint
        self._cache = cache

    def hold(self, snapshot: Snapshot) -> AbstractContextManager[None]:
        return self._cache.hold(self._place(snapshot))

    def fetch(
        self,
        snapshot: Snapshot,
        paths: Sequence[str],
        *,
        token: str | Literal[False],
        advance: Callable[[float], None] | None = None,
    ) -> Path:
        """See `Hub.download`. Files that are complete in the cache are not fetched again."""
        files = {file.path: file for file in snapshot.files if file.path in set(paths)}
        for path in paths:
            if path not in files:
                raise RepositoryNotFound(
                    f"{snapshot.kind} {snapshot.repo_id} has no file {path!r} at {snapshot.revision}"
                )
        place = self._place(snapshot)

        def fetch_one(path: str, counter: type[ByteCounter], stopping: threading.Event) -> None:
            file = files[path]
            url = hf_hub_url(
                snapshot.repo_id,
                path,
                repo_type=snapshot.kind.value,
                revision=snapshot.revision,
                endpoint=self._endpoint,
            )
            with hub_errors(f"downloading {path} of {snapshot.kind} {snapshot.repo_id}"):
                fetch_blob(url, place.blob(_digest(file)), file, token=token, counter=counter, stopping=stopping)
                place.link(path, _digest(file))

        with self._cache.hold(place):
            missing = {
                path: file.size
                for path, file in files.items()
                if not place.has(path, digest=_digest(file), size=file.size)
            }
            if missing:  # else no threads are needed, the usual case at submission
                blobs = {_digest(file): file.size for file in files.values()}
                with self._cache.reserve(place, blobs, purpose=f"the download of {snapshot.repo_id}"):
                    fetch_all(missing, fetch_one, advance=advance)
            elif advance is not None:
                advance(1.0)
        return place.snapshot

    def _place(self, snapshot: Snapshot) -> Place:
        folder = repo_folder_name(repo_id=snapshot.repo_id, repo_type=snapshot.kind.value)
        return self._cache.place(folder, snapshot.revision)


def _digest(file: RepositoryFile) -> str:
    assert file.digest is not None, "the Hub gives one for each file"
    return file.digest
