"""A directory of captured activations that later jobs can read, and the entry of one job in it.

    DIRECTORY/KEY/            a complete entry: files of streams, and their index `entry.json`
    DIRECTORY/.draft-*/       an entry that is being written; it gets its name by one rename
    DIRECTORY/lock            held while entries are renamed or removed

Safe with several processes: a reader holds a shared lock on `entry.json` of its entry, a writer an exclusive lock on
`held` of its draft; a directory without a lock may be removed. Locks end with their process, also after SIGKILL. Only
`entry.json` is flushed to disk (fsync): after a power failure, the checksums of the tensors show what is missing.

A key covers all that the values depend on: the content of weights and config, the tokens, the settings that decide the
rounding, and the code (docs/decisions/0012-activation-cache.md).
"""

import fcntl
import hashlib
import json
import logging
import os
import platform
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers

import replaceme_core
from replaceme_core.engine.activations.tensor_store import DamagedStore, FileStore, Piece
from replaceme_core.engine.activations.verified_file import content_digest
from replaceme_core.engine.text.drawing import TokenSet
from replaceme_core.hub.files import lock_file, locked, sha256_of, try_locked
from replaceme_core.hub.model_files import CONFIG, admit_file, weight_files
from replaceme_core.library_errors import free_space
from replaceme_core.request.resolve import ResolvedCompute

logger = logging.getLogger(__name__)


def model_digest(directory: Path) -> str:
    """SHA-256 of the content of config and weights: a name or a revision may be moved to other content.

    These are the files that are loaded, and no others: else one model's activations could serve another.
    """
    total = hashlib.sha256()
    for path in (admit_file(directory, CONFIG), *weight_files(directory)):
        total.update(bytes.fromhex(file_digest(path)))
    return total.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file. It is read once, unless it changes in between: weights are large."""
    facts = path.stat()
    return _digest(path, (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns))


@lru_cache(maxsize=1024)
def _digest(path: Path, _facts: tuple[int, ...]) -> str:
    return sha256_of(path)


def code_files() -> list[Path]:
    """Every source file of the core, in every package: any of them may decide a number."""
    return sorted(Path(replaceme_core.__path__[0]).rglob("*.py"))


def code_digest() -> str:
    """SHA-256 of the names and the content of `code_files`: it differs between releases, and after any local change."""
    root, total = Path(replaceme_core.__path__[0]), hashlib.sha256()
    for path in code_files():
        total.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()


def tensor_digest(values: torch.Tensor) -> str:
    """SHA-256 of shape, dtype and values of a tensor on the host."""
    shape = json.dumps([list(values.shape), str(values.dtype)]).encode()
    return hashlib.sha256(shape + values.contiguous().numpy().tobytes()).hexdigest()


def device_name(device: torch.device) -> str:
    """The model of the GPU, or the architecture and vector instructions of the CPU: both decide the rounding."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


ENTRY = "entry.json"
_HELD = "held"
_DRAFT = ".draft-"
_TRASH = ".trash-"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A complete entry, not evicted before `close`. `facts` is the content of its `entry.json`."""

    directory: Path
    facts: Mapping[str, Any]
    descriptor: int

    def close(self) -> None:
        os.close(self.descriptor)


class ActivationCache:
    """At most `limit` bytes: entries that were used least recently are evicted first."""

    def __init__(self, directory: Path, *, limit: int) -> None:
        self._directory = directory
        self._limit = limit
        directory.mkdir(parents=True, exist_ok=True)

    def has_room(self, size: int) -> bool:
        """Whether an entry of `size` bytes fits, once others are evicted."""
        try:
            return size <= self._limit and size <= free_space(self._directory)
        except OSError as error:
            logger.warning("the activation cache cannot be used: %s", error)
            return False

    def find(self, key: str) -> Entry | None:
        """The entry, which counts as used now; `None` if there is none. One that cannot be read is removed."""
        with locked(self._directory / "lock"):
            return self._open(self._directory / key)

    @contextmanager
    def draft(self) -> Iterator[Path]:
        """A new, empty directory to write into, removed at the end unless it was published.

        Drafts of processes that ended are removed first.
        """
        path = self._directory / f"{_DRAFT}{uuid.uuid4().hex}"
        with locked(self._directory / "lock"):
            self._remove_abandoned()
            path.mkdir()
            descriptor = lock_file(path / _HELD)
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)  # a published draft has another name
            os.close(descriptor)

    def discard(self, entry: Entry) -> None:
        """Remove a damaged entry, even if others read it: they read the same damaged files."""
        with locked(self._directory / "lock"):
            self._remove(entry.directory)

    def publish(self, draft: Path, key: str, facts: Mapping[str, object]) -> Entry | None:
        """Make a draft the entry `key`. Returns `None`, and it stays a draft, if there is one by now or no space."""
        with (draft / ENTRY).open("x", encoding="utf-8") as file:
            json.dump(facts, file)
            file.flush()
            os.fsync(file.fileno())
        target = self._directory / key
        with locked(self._directory / "lock"):
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
        return Entry(directory=path, facts=facts, descriptor=descriptor)

    def _make_room(self, size: int) -> bool:
        """Evict entries until `size` more bytes fit, except those in use. Returns whether they fit."""
        by_use = sorted(self._directory.glob(f"[!.]*/{ENTRY}"), key=lambda index: index.stat().st_mtime_ns)
        taken = sum(_size(index.parent) for index in by_use)
        for index in by_use:
            if taken + size <= self._limit:
                break
            freed = _size(index.parent)
            if _is_unlocked(index):
                self._remove(index.parent)
                taken -= freed
        return taken + size <= self._limit

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


def _is_unlocked(path: Path) -> bool:
    """Whether no process holds a lock on the file; true if it is missing."""
    with try_locked(path) as is_free:
        return is_free or not path.exists()


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir() if path.is_file())


def open_cache(directory: str | None, *, limit: int) -> ActivationCache | None:
    """The cache in `directory`; `None` if there is none, or the runner may not write there."""
    if directory is None or limit == 0:
        return None
    try:
        return ActivationCache(Path(directory), limit=limit)
    except OSError as error:  # for example, a sandbox that does not let the runner write there
        logger.warning("the activation cache cannot be used: %s", error)
        return None


def scratch_store(stack: ExitStack, *, beside: Path) -> FileStore:
    """A store for streams that only this job needs, deleted when `stack` is closed.

    In a directory `beside` the output, which is on a disk: the directory for temporary files may be in memory. Of such
    files the system keeps in memory what it has room for.
    """
    place = stack.enter_context(TemporaryDirectory(prefix=f".{beside.name}.streams-", dir=beside.parent))
    return FileStore(directory=Path(place))


def entry_key(directory: Path, *, tokens: TokenSet, compute: ResolvedCompute) -> str:
    """The key of an entry, 64 hex digits. `directory` holds the model."""
    facts = {
        "model": model_digest(directory),
        "compute": compute.model_dump(mode="json", exclude={"pattern_safe"}),  # streams are of all blocks
        "device": device_name(torch.device(compute.device)),
        "versions": [str(torch.__version__), transformers.__version__],
        "code": code_digest(),
    }
    return content_digest(facts, tokens.calibrating)


@dataclass(kw_only=True)
class CachedActivations:
    """Activations under one key in `cache`. `facts` are numbers that are stored with them."""

    cache: ActivationCache
    key: str
    facts: dict[str, float] = field(default_factory=dict)
    _entry: Entry | None = None
    _held: ExitStack = field(default_factory=ExitStack)
    """The entry that is read, or the draft that is written."""

    def find(self) -> FileStore | None:
        """The complete activations of an earlier job; `None` if there are none."""
        self._entry = self.cache.find(self.key)
        if self._entry is None:
            return None
        self._held.enter_context(closing(self._entry))
        try:
            streams, self.facts = _read(self._entry)
        except DamagedStore:
            self.discard()
            return None
        return streams

    def begin(self) -> FileStore:
        """A new store. `complete` publishes it once it is filled."""
        self.close()
        return FileStore(directory=self._held.enter_context(self.cache.draft()))

    def complete(self, streams: FileStore) -> None:
        """Publish `streams` for later jobs. If they do not fit into the cache, only this job can use them."""
        self._entry = self.cache.publish(streams.directory, self.key, {"index": streams.index, "facts": self.facts})
        if self._entry is not None:
            self._held.enter_context(closing(self._entry))
            streams.directory = self._entry.directory

    def discard(self) -> None:
        """Remove the entry that was found, since it is damaged."""
        if self._entry is not None:
            self.cache.discard(self._entry)
        self.close()

    def close(self) -> None:
        """Release the entry or draft; nothing may be read from it afterwards."""
        self._held.close()
        self._entry = None


def _read(entry: Entry) -> tuple[FileStore, dict[str, float]]:
    streams = FileStore(directory=entry.directory)
    try:
        for name, rows in entry.facts["index"].items():
            pieces = streams.index[name] = [Piece(*row) for row in rows]
            size = (entry.directory / name).stat().st_size
            if size != streams.end(pieces):
                raise DamagedStore(f"the length of {name} is wrong")
            streams.nbytes += size
        return streams, {name: float(value) for name, value in entry.facts["facts"].items()}
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedStore(f"the index of the streams cannot be read: {error!r}") from error
