"""The records of a directory hub for one repository: lock, log of commits, a pending commit, hashes of files.

They are kept beside the repositories, never inside one. `directory.py` decides what is in a commit.
"""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from uuid import uuid4

from replaceme_core.hub.files import LocalFile, sha256_of

_SETTLED_NS = 1_000_000_000  # a file touched this recently may change again within one tick of its time stamp


@dataclass(frozen=True, kw_only=True)
class Commit:
    """A commit. `staged` and `replaced` name the directories beside the target that the swap moves."""

    revision: str
    title: str
    trailer: str
    private: bool
    staged: str
    replaced: str


class Journal:
    def __init__(self, directory: Path, *, target: Path) -> None:
        self._directory = directory
        self._target = target
        self._known: dict[str, tuple[list[int], str]] = {}
        self._hashing = Lock()  # who comes meanwhile waits, and need not read the same files again

    @property
    def exists(self) -> bool:
        return self._directory.is_dir()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Lock out swaps. A swap that a crash interrupted is completed first."""
        try:
            if self._pending.exists():
                with self.writing():
                    pass
            descriptor: int | None = self._open_lock()
        except OSError:  # a hub on read-only storage, where no swap is possible
            descriptor = None
        if descriptor is None:
            yield
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Lock out all readers and writers. A swap that a crash interrupted is completed first."""
        descriptor = self._open_lock()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            self._complete()
            yield
        finally:
            os.close(descriptor)

    def commit(self, commit: Commit) -> None:
        """Replace the repository by the staged directory, also if a crash interrupts this. Call it within `writing`."""
        _replace(self._pending, json.dumps(asdict(commit)))
        self._complete()

    def commits(self) -> tuple[Commit, ...]:
        """The commits, newest first."""
        try:
            lines = self._log.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return ()
        return tuple(Commit(**json.loads(line)) for line in reversed(lines))

    def sha256(self, files: tuple[LocalFile, ...]) -> dict[str, str]:
        """SHA-256 by path, of all files. Those whose size, inode and times are unchanged are not read again."""
        with self._hashing:
            before = dict(self._load_hashes())
            hashes = {file.path: self._sha256(file) for file in files}
            self._known = {path: known for path, known in self._known.items() if path in hashes}
            if self._known != before:
                self._save_hashes(self._known)
            return hashes

    def has(self, file: LocalFile, sha256: str) -> bool:
        """Whether a file has the content that `sha256` gave for it."""
        with self._hashing:
            self._load_hashes()
            return self._sha256(file) == sha256

    def _sha256(self, file: LocalFile) -> str:
        now = time.time_ns()
        facts, digest = self._known.get(file.path, (None, ""))
        if facts != file.facts:
            digest = sha256_of(file.location)
            self._known.pop(file.path, None)
            if now - file.changed_ns > _SETTLED_NS:
                self._known[file.path] = (file.facts, digest)
        return digest

    def _complete(self) -> None:
        """Complete the swap that `pending` describes; any of its steps may have been done already."""
        try:
            commit = Commit(**json.loads(self._pending.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return
        staged, replaced = self._target.with_name(commit.staged), self._target.with_name(commit.replaced)
        if staged.exists():
            if self._target.exists():
                self._target.rename(replaced)
            staged.rename(self._target)
        if commit not in self.commits():
            with self._log.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(asdict(commit)) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
        self._pending.unlink()
        shutil.rmtree(replaced, ignore_errors=True)

    def _open_lock(self) -> int:
        self._directory.mkdir(parents=True, exist_ok=True)
        return os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def _load_hashes(self) -> dict[str, tuple[list[int], str]]:
        if not self._known:
            with suppress(OSError, ValueError):
                raw: dict[str, tuple[list[int], str]] = json.loads(self._hashes.read_bytes())
                self._known = {path: (facts, digest) for path, (facts, digest) in raw.items()}
        return self._known

    def _save_hashes(self, known: dict[str, tuple[list[int], str]]) -> None:
        try:
            _replace(self._hashes, json.dumps(known))
        except OSError:
            return  # they only save time

    @property
    def _pending(self) -> Path:
        return self._directory / "pending.json"

    @property
    def _log(self) -> Path:
        return self._directory / "commits.jsonl"

    @property
    def _hashes(self) -> Path:
        return self._directory / "hashes.json"


def _replace(path: Path, text: str) -> None:
    """Write a file atomically."""
    draft = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with draft.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
