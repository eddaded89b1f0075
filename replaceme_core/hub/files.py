"""Local files of both implementations of the Hub, and of other directories that processes share: lists, hashes, JSON,
and locks, which end with their process at the latest.
"""

import fcntl
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from replaceme_core.errors import AccessDenied, BrokenModel, InvalidInput
from replaceme_core.wording import is_utf8, read_json, shorten

DEEPEST = 64
MOST_FILES = 100_000
"""Of a repository, with folders: the Hub advises to have fewer."""
JSON_LIMIT = 8 * 1024 * 1024  # bytes; an index of 36,000 tensors, as the largest supported models have, takes 4 MB
JSON_LEVELS = 64
_NOT_CONTENT = frozenset({".git", ".cache"})  # folders of git and of the Hub's own client


@dataclass(frozen=True, kw_only=True)
class LocalFile:
    """A regular file under some folder: `path` is relative to it, with forward slashes."""

    path: str
    location: Path
    status: os.stat_result

    @property
    def size(self) -> int:
        return self.status.st_size

    @property
    def facts(self) -> list[int]:
        """Size, inode and times, which change with the content."""
        return [self.size, self.status.st_ino, self.status.st_mtime_ns, self.status.st_ctime_ns]


def walk(folder: Path) -> tuple[LocalFile, ...]:
    """All regular files under `folder`, sorted by path.

    Raises `AccessDenied` for a link that leads out of it, and as `check_names` does.
    """
    home = Path(os.path.realpath(folder))
    found: list[LocalFile] = []
    waiting, seen = [""], 0
    while waiting:
        above = waiting.pop()
        with os.scandir(folder / above) as listing:
            entries = [entry for entry in listing if not (entry.name in _NOT_CONTENT and entry.is_dir())]
        seen += len(entries)
        check_names((f"{above}{entry.name}" for entry in entries), count=seen)
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                waiting.append(f"{above}{entry.name}/")
            else:
                file = _regular(folder, f"{above}{entry.name}", home)
                found += [] if file is None else [file]
    return tuple(sorted(found, key=lambda file: file.path))


def find_file(folder: Path, path: str) -> LocalFile | None:
    """One of the files of `walk`; `None` if there is none at this path."""
    return _regular(folder, path, Path(os.path.realpath(folder)))


def _regular(folder: Path, path: str, home: Path) -> LocalFile | None:
    """The file at a path under `folder`, whose real place is `home`, if it is a regular one."""
    location = folder / path
    try:
        status = location.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISLNK(status.st_mode):
        if location.is_dir() or not leads_into(location, home):
            raise AccessDenied(f"{path} is a link that leads out of its repository")
        if not location.exists():
            raise AccessDenied(f"{path} is a link that leads nowhere")
        status = location.stat()
    return LocalFile(path=path, location=location, status=status) if stat.S_ISREG(status.st_mode) else None


def check_names(paths: Iterable[str], *, count: int) -> None:
    """Raises `InvalidInput` for a repository of too many files, of which it has `count`, and for some of their `paths`:

    those that lead out of the folder that they are joined to, are not UTF-8, or are deeper than 64 folders.
    """
    if count > MOST_FILES:
        raise InvalidInput(f"the repository has more than {MOST_FILES:,} files and folders; use a smaller one")
    for path in paths:
        if path.count("/") >= DEEPEST:
            raise InvalidInput(f"the repository has folders within folders, more than {DEEPEST} deep; use fewer")
        shown = shorten(path, 100)
        if not is_utf8(path):
            raise InvalidInput(f"the repository has a file whose name is not UTF-8: {shown}; rename it")
        if not _is_plain(path):
            raise InvalidInput(f"the repository has a file at {shown!r}, which is no plain relative path; rename it")


def leads_into(path: Path, home: Path) -> bool:
    """Whether `path`, all links followed, is under `home`. A loop of links is no error here."""
    return Path(os.path.realpath(path)).is_relative_to(home)


def sha256_of(path: Path) -> str:
    """The 64 hex digits of a file's SHA-256."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def content_hash(files: Iterable[tuple[str, str]]) -> str:
    """40 hex digits that identify these (path, SHA-256) pairs, whatever their order."""
    digest = hashlib.sha256()
    for path, sha256 in sorted(files):
        digest.update(f"{sha256}  {path}\n".encode())
    return digest.hexdigest()[:40]


def _is_plain(path: str) -> bool:
    """Whether a path stays inside the directory that it is joined to, on any system, and is the only one of its file.

    >>> [_is_plain(path) for path in ("a/b.txt", "../b", "/b", "C:b", "a\\\\b", "a//b", "a/./b", "")]
    [True, False, False, False, False, False, False, False]
    """
    parts = path.split("/")
    return not {"", ".", ".."}.intersection(parts) and path[1:2] != ":" and "\\" not in path and "\0" not in path


def read_json_file(location: Path, path: str, *, limit: int = JSON_LIMIT) -> dict[str, object]:
    """The JSON object in a file; `path` is its name for messages. Raises `BrokenModel` for anything else."""
    with location.open("rb") as stream:
        raw = stream.read(limit + 1)
    if len(raw) > limit:
        raise BrokenModel(f"{path} is larger than {limit:,} bytes", value=path)
    try:
        value = read_json(raw.decode("utf-8-sig"), levels=JSON_LEVELS)
    except ValueError as error:
        raise BrokenModel(f"{path} is not valid JSON: {error}", value=path) from None
    if not isinstance(value, dict):
        raise BrokenModel(f"{path} must hold a JSON object, not {type(value).__name__}", value=path)
    return value


def write_atomically(path: Path, text: str) -> None:
    """Write a file, which is on the disk before it has its name."""
    draft = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with draft.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def lock_file(path: Path, *, shared: bool = False) -> int:
    """Create a file for this user alone and wait for its lock, which ends when the descriptor is closed.

    Repeated if another process removed the file between open and lock.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)


@contextmanager
def locked(path: Path, *, shared: bool = False) -> Iterator[int]:
    """Hold the lock of `lock_file` in the `with` block; yields the descriptor."""
    descriptor = lock_file(path, shared=shared)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def try_locked(path: Path, *, create: bool = False) -> Iterator[bool]:
    """Yield whether nobody else has locked a file or directory; then it is locked in the `with` block.

    False if there is none, and none is to be created.
    """
    way = os.O_RDONLY if path.is_dir() else os.O_RDWR  # over NFS a lock of what is only read is none
    with ExitStack() as opened:
        try:
            descriptor = os.open(path, way | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o600)
            opened.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_free = True
        except (FileNotFoundError, BlockingIOError):
            is_free = False
        yield is_free
