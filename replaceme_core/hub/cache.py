"""The downloads on this machine, shared by all its processes: what is in use, how much there may be, what goes first.

The layout is that of the Hub's client: `REPOSITORY/blobs/DIGEST` is a file, and `REPOSITORY/snapshots/REVISION/PATH` a
link to it. Who uses a snapshot holds a lock on `.held/REPOSITORY@REVISION`, whose time is that of the last use.
Who downloads holds one on a file in `.reserved`, which lists the blobs and their sizes. A lock ends with its
process. What is decided about space is decided under `.lock`. See docs/decisions/0006-two-hubs.md.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from replaceme_core.errors import OutOfSpace
from replaceme_core.hub.files import locked, try_locked
from replaceme_core.library_errors import free_space

CACHE_BYTES = 200 * 1024**3
"""Space for a model of 70 billion values in bfloat16, and more."""
PARTIAL = ".incomplete"
"""Ends the name of a blob that is not complete."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a repository is in the cache, and one snapshot of it."""

    repository: Path
    revision: str

    @property
    def snapshot(self) -> Path:
        return self.repository / "snapshots" / self.revision

    def blob(self, digest: str) -> Path:
        return self.repository / "blobs" / digest

    def has(self, path: str, *, digest: str, size: int) -> bool:
        """Whether the file is here, complete. Blobs have been compared with their digest before they got its name."""
        link = self.snapshot / path
        try:
            return link.readlink().name == digest and link.stat().st_size == size
        except OSError:
            return False

    def link(self, path: str, digest: str) -> None:
        """Make the file of the snapshot that leads to a blob; atomic, in place of what is there."""
        link = self.snapshot / path
        link.parent.mkdir(parents=True, exist_ok=True)
        draft = link.with_name(f".{uuid4().hex}")
        draft.symlink_to(os.path.relpath(self.blob(digest), link.parent))
        draft.replace(link)


class Cache:
    """The cache under `root`, of at most `limit` bytes. Safe to use from several threads and processes."""

    def __init__(self, root: Path, *, limit: int) -> None:
        self._root = root
        self._limit = limit

    def place(self, folder: str, revision: str) -> Place:
        return Place(repository=self._root / folder, revision=revision)

    @contextmanager
    def hold(self, place: Place) -> Iterator[None]:
        """Keep the snapshot from being removed, and note that it was used."""
        held = self._held(place)
        held.parent.mkdir(parents=True, exist_ok=True)
        with locked(held, shared=True) as descriptor:
            os.utime(descriptor)
            yield

    @contextmanager
    def reserve(self, place: Place, sizes: Mapping[str, int], *, purpose: str) -> Iterator[None]:
        """Space for the blobs of `sizes` (bytes by digest), none of which is removed meanwhile.

        Removes the snapshots that nobody holds, those first that were not used for the longest time, until there is
        enough. Raises `OutOfSpace`; `purpose` starts its message. What several reserve at once counts once.
        """
        place.snapshot.mkdir(parents=True, exist_ok=True)
        wanted = {place.blob(digest): size for digest, size in sizes.items()}
        record = self._root / ".reserved" / uuid4().hex
        with ExitStack() as reserved:
            with locked(self._root / ".lock"):
                self._make_room(wanted, purpose)
                record.parent.mkdir(exist_ok=True)
                reserved.enter_context(locked(record))
                reserved.callback(record.unlink, missing_ok=True)
                listed = {blob.relative_to(self._root).as_posix(): size for blob, size in wanted.items()}
                record.write_text(json.dumps(listed), encoding="utf-8")
            yield

    def _held(self, place: Place) -> Path:
        return self._root / ".held" / f"{place.repository.name}@{place.revision}"

    def _make_room(self, wanted: Mapping[Path, int], purpose: str) -> None:
        reserved = {**self._reserved(), **wanted}
        # Downloads go on meanwhile: what is reserved counts whole, and free space is read before what is there of it.
        free = free_space(self._root)
        coming = sum(max(0, size - received_bytes(blob)) for blob, size in reserved.items())
        others = sum(_size(blob) for blob in self._root.glob("*/blobs/*") if _whole(blob) not in reserved)
        over, short = sum(reserved.values()) + others - self._limit, coming - free
        for place in self._oldest_first() if sum(reserved.values()) <= self._limit else ():  # else nothing helps
            if max(over, short) <= 0:
                return
            removed = self._remove(place, keep=reserved.keys())
            over, short = over - removed, short - removed
        if short > 0:
            free = free_space(self._root)
            raise OutOfSpace(f"{purpose} takes {coming:,} bytes, {free:,} are free").because(f"under {self._root}")
        if over > 0:
            raise OutOfSpace(
                f"{purpose} takes {sum(wanted.values()):,} bytes; the cache may have {self._limit:,} "
                f"(REPLACEME_HUB_CACHE_BYTES), and {self._limit + over - sum(wanted.values()):,} are in use or reserved"
                ", some of them by other jobs"
            )

    def _reserved(self) -> dict[Path, int]:
        """The blobs that others are downloading. Records whose process is gone are removed."""
        found: dict[Path, int] = {}
        for record in (self._root / ".reserved").glob("*"):
            with try_locked(record) as is_abandoned, suppress(OSError, ValueError):
                if is_abandoned:
                    record.unlink(missing_ok=True)
                else:
                    found |= {self._root / name: size for name, size in json.loads(record.read_bytes()).items()}
        return found

    def _oldest_first(self) -> list[Place]:
        places = [
            Place(repository=snapshot.parent.parent, revision=snapshot.name)
            for snapshot in self._root.glob("*/snapshots/*")
        ]

        def used_at(place: Place) -> float:
            held = self._held(place)
            return (held if held.exists() else place.snapshot).stat().st_mtime

        return sorted(places, key=used_at)

    def _remove(self, place: Place, *, keep: Iterable[Path]) -> int:
        """Remove a snapshot and the blobs that no other one has; returns their bytes. One that is held is left."""
        held = self._held(place)
        held.parent.mkdir(exist_ok=True)
        with try_locked(held, create=True) as is_free:
            if not is_free:
                return 0
            shutil.rmtree(place.snapshot, ignore_errors=True)
            kept = {blob.name for blob in keep if blob.parent.parent == place.repository}
            for link in place.repository.glob("snapshots/**/*"):
                with suppress(OSError):  # a folder, or a link that another process renames meanwhile
                    kept.add(link.readlink().name)
            removed = 0
            for blob in list(place.repository.glob("blobs/*")):
                if blob.name.removesuffix(PARTIAL) not in kept:
                    size = _size(blob)
                    blob.unlink(missing_ok=True)
                    removed += size
            if not any(place.repository.glob("snapshots/*")) and not any(place.repository.glob("blobs/*")):
                shutil.rmtree(place.repository, ignore_errors=True)
            held.unlink(missing_ok=True)
            return removed


def received_bytes(blob: Path) -> int:
    """What is there of a blob, also of one that is not complete."""
    return _size(blob.with_name(blob.name + PARTIAL)) or _size(blob)  # in this order: it is renamed at its end


def _whole(blob: Path) -> Path:
    return blob.with_name(blob.name.removesuffix(PARTIAL))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
