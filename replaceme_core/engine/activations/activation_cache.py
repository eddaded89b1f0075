"""A directory of captured activations that later jobs can read. Knows files and locks, no model.

    DIRECTORY/KEY/            a complete entry: files of streams, and their index `entry.json`
    DIRECTORY/.draft-*/       an entry that is being written; it gets its name by one rename
    DIRECTORY/lock            held while entries are renamed or removed

Safe with several processes: a reader holds a shared lock on `entry.json` of its entry, a writer an exclusive lock on
`held` of its draft; a directory without a lock may be removed. Locks end with their process, also after SIGKILL. Only
`entry.json` is flushed to disk (fsync): after a power failure, the checksums of the tensors show what is missing.
"""

import contextlib
import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from replaceme_core.library_errors import free_space

ENTRY = "entry.json"
_HELD = "held"
_DRAFT = ".draft-"
_TRASH = ".trash-"


class Entry:
    """A complete entry, not evicted before `close`. `facts` is the content of its `entry.json`."""

    def __init__(self, directory: Path, facts: Mapping[str, object], descriptor: int) -> None:
        self.directory = directory
        self.facts = facts
        self._descriptor: int | None = descriptor

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class Draft:
    """A directory to write into. `close` removes it unless it was published."""

    def __init__(self, cache: "ActivationCache", directory: Path, descriptor: int) -> None:
        self.directory = directory
        self._cache = cache
        self._descriptor = descriptor

    def publish(self, key: str, facts: Mapping[str, object]) -> Entry | None:
        """Make this the entry `key`. Returns `None`, and stays a draft, if there is one by now or no space for it."""
        written = self.directory / f"{ENTRY}.new"
        with written.open("x", encoding="utf-8") as file:
            json.dump(facts, file)
            file.flush()
            os.fsync(file.fileno())
        written.rename(self.directory / ENTRY)
        return self._cache.admit(self.directory, key)

    def close(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)  # a published draft has another name
        os.close(self._descriptor)


class ActivationCache:
    """At most `limit` bytes: entries that were used least recently are evicted first."""

    def __init__(self, directory: Path, *, limit: int) -> None:
        self._directory = directory
        self._limit = limit
        directory.mkdir(parents=True, exist_ok=True)

    def has_room(self, size: int) -> bool:
        """Whether an entry of `size` bytes fits, once others are evicted."""
        return size <= self._limit and size <= free_space(self._directory)

    def find(self, key: str) -> Entry | None:
        """The entry, which counts as used now; `None` if there is none. One that cannot be read is removed."""
        with self._locked():
            return self._open(self._directory / key)

    def draft(self) -> Draft:
        """A new, empty draft. Drafts of processes that ended are removed first."""
        with self._locked():
            self._remove_abandoned()
            path = self._directory / f"{_DRAFT}{uuid.uuid4().hex}"
            path.mkdir()
            descriptor = os.open(path / _HELD, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            return Draft(self, path, descriptor)

    def discard(self, entry: Entry) -> None:
        """Remove a damaged entry, even if others read it: they read the same damaged files."""
        entry.close()
        with self._locked():
            self._remove(entry.directory)

    def admit(self, draft: Path, key: str) -> Entry | None:
        """Rename `draft` to `key`; `None` if there is such an entry or no space for it."""
        target = self._directory / key
        with self._locked():
            if target.exists() or not self._make_room(_size(draft)):
                return None
            (draft / _HELD).unlink()
            draft.rename(target)
            return self._open(target)

    def _open(self, path: Path) -> Entry | None:
        try:
            descriptor = os.open(path / ENTRY, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            facts = json.loads((path / ENTRY).read_text(encoding="utf-8"))
        except ValueError:
            facts = None
        if not isinstance(facts, dict):
            os.close(descriptor)
            self._remove(path)
            return None
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        os.utime(path / ENTRY)
        return Entry(path, facts, descriptor)

    def _make_room(self, size: int) -> bool:
        """Evict entries until `size` more bytes fit, except those in use. Returns whether they fit."""
        by_use = sorted(self._entries(), key=lambda path: (path / ENTRY).stat().st_mtime_ns)
        taken = sum(map(_size, by_use))
        for path in by_use:
            if taken + size <= self._limit:
                break
            freed = _size(path)
            if _is_unlocked(path / ENTRY):
                self._remove(path)
                taken -= freed
        return taken + size <= self._limit

    def _entries(self) -> list[Path]:
        return [
            path for path in self._directory.iterdir() if not path.name.startswith(".") and (path / ENTRY).is_file()
        ]

    def _remove_abandoned(self) -> None:
        for path in self._directory.iterdir():
            abandoned = path.name.startswith(_DRAFT) and _is_unlocked(path / _HELD)
            if abandoned or path.name.startswith(_TRASH):
                shutil.rmtree(path, ignore_errors=True)

    def _remove(self, path: Path) -> None:
        """Renamed first, so that no process finds half an entry."""
        trash = self._directory / f"{_TRASH}{uuid.uuid4().hex}"
        with suppress(FileNotFoundError):
            path.rename(trash)
            shutil.rmtree(trash, ignore_errors=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _is_unlocked(path: Path) -> bool:
    """Whether no process holds a lock on the file; true if it is missing."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    with contextlib.closing(os.fdopen(descriptor)):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir() if path.is_file())
