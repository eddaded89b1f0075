"""The activations of one job in the cache: an entry of an earlier job, or a draft of a new one.

The key of an entry covers all that its values depend on: the content of weights and config, the tokens, the settings
that decide the rounding, and the code (docs/decisions/0012-activation-cache.md).
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import transformers

from replaceme_core.engine.activations.activation_cache import ActivationCache, Draft, Entry
from replaceme_core.engine.activations.content_key import code_digest, device_name, model_digest, tensor_digest
from replaceme_core.engine.activations.tensor_store import DamagedStore, FileStore, MemoryStore, TensorStore, pieces_of
from replaceme_core.engine.model.memory import free_bytes
from replaceme_core.engine.text.packing import TokenSet
from replaceme_core.request.resolve import ResolvedCompute, ResolvedSpec
from replaceme_core.runner.requests import RunnerRequest

logger = logging.getLogger(__name__)

MEMORY_SHARE = 0.25
"""Streams that take more than this share of the free memory go to disk."""
FORMAT = 2


@contextmanager
def find_cached_activations(
    request: RunnerRequest, *, spec: ResolvedSpec, tokens: TokenSet, size: int
) -> Iterator["CachedActivations | None"]:
    """Yield the cache entry for this job; `None` if `request` names no cache or `size` bytes do not fit into it."""
    if request.cache_directory is None or request.cache_bytes == 0:
        yield None
        return
    try:
        cache = ActivationCache(Path(request.cache_directory), limit=request.cache_bytes)
        room = cache.has_room(size)
    except OSError as error:  # for example, a sandbox that does not let the runner write there
        logger.warning("the activation cache cannot be used: %s", error)
        room = False
    if not room:
        yield None
        return
    key = entry_key(Path(request.model_directory), tokens=tokens, compute=spec.compute)
    cached = CachedActivations(cache=cache, key=key)
    try:
        yield cached
    finally:
        cached.close()


def scratch_store(stack: ExitStack, *, beside: Path, size: int, memory: bool = True) -> TensorStore:
    """A store for streams that only this job needs, deleted when `stack` is closed.

    In memory if `size` bytes are less than `MEMORY_SHARE` of what is free; else in a directory `beside` the output,
    which is on a disk: the directory for temporary files may be in memory.
    """
    if memory and size <= MEMORY_SHARE * free_bytes(torch.device("cpu")):
        return MemoryStore()
    place = stack.enter_context(TemporaryDirectory(prefix=f".{beside.name}.streams-", dir=beside.parent))
    return FileStore(directory=Path(place))


def entry_key(directory: Path, *, tokens: TokenSet, compute: ResolvedCompute) -> str:
    """The key of an entry, 64 hex digits. `directory` holds the model."""
    facts = {
        "format": FORMAT,
        "model": model_digest(directory),
        "tokens": [tensor_digest(each) for each in (tokens.fit, tokens.held_out, tokens.held_out_sources)],
        "compute": compute.model_dump(mode="json", exclude={"pattern_safe"}),  # streams are of all blocks
        "device": device_name(torch.device(compute.device or "cpu")),
        "versions": [str(torch.__version__), transformers.__version__],
        "code": code_digest(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@dataclass(kw_only=True)
class CachedActivations:
    """Activations under one key in `cache`. `facts` are numbers that are stored with them."""

    cache: ActivationCache
    key: str
    facts: dict[str, float] = field(default_factory=dict)
    _entry: Entry | None = None
    _draft: Draft | None = None

    def find(self) -> FileStore | None:
        """The complete activations of an earlier job; `None` if there are none."""
        self._entry = self.cache.find(self.key)
        if self._entry is None:
            return None
        try:
            streams, self.facts = _read(self._entry)
        except DamagedStore:
            self.discard()
            return None
        return streams

    def begin(self) -> FileStore:
        """A new store. `complete` publishes it once it is filled."""
        self.close()
        self._draft = self.cache.draft()
        return FileStore(directory=self._draft.directory)

    def complete(self, streams: FileStore) -> None:
        """Publish `streams` for later jobs. If they do not fit into the cache, only this job can use them."""
        assert self._draft is not None, "`begin` was not called"
        index = {name: [piece.as_dict() for piece in pieces] for name, pieces in streams.index.items()}
        self._entry = self._draft.publish(self.key, {"index": index, "facts": self.facts})
        if self._entry is not None:
            streams.directory = self._entry.directory

    def discard(self) -> None:
        """Remove the entry that was found, since it is damaged."""
        if self._entry is not None:
            self.cache.discard(self._entry)
        self.close()

    def close(self) -> None:
        """Release the entry or draft; nothing may be read from it afterwards."""
        for held in (self._entry, self._draft):
            if held is not None:
                held.close()
        self._entry = self._draft = None


def _read(entry: Entry) -> tuple[FileStore, dict[str, float]]:
    index, facts = entry.facts.get("index"), entry.facts.get("facts")
    if not isinstance(index, Mapping) or not isinstance(facts, Mapping):
        raise DamagedStore("the entry has no index")
    pieces = pieces_of(index)
    streams = FileStore(directory=entry.directory, index=pieces)
    for name, several in pieces.items():
        path = entry.directory / name
        if not path.is_file() or path.stat().st_size != streams.end(several):
            raise DamagedStore(f"the length of {name} is wrong")
        streams.nbytes += streams.end(several)
    return streams, {str(name): float(value) for name, value in facts.items()}
