"""Where the streams of one job are kept: an entry that an earlier job left, a draft of one, or nowhere.

An entry is known by all that its values follow from: the weights and the config by their content, the tokens, whatever
decides the rounding, and this code.
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

from replaceme_core.activations.activation_cache import ActivationCache, Draft, Entry
from replaceme_core.activations.content_key import code_digest, device_name, model_digest, tensor_digest
from replaceme_core.activations.tensor_store import DamagedStore, FileStore, MemoryStore, TensorStore, pieces_of
from replaceme_core.calibration.packing import TokenSet
from replaceme_core.models.memory import free_bytes
from replaceme_core.runner.messages import RunnerRequest
from replaceme_core.spec import CompressionSpec, ComputeSpec

logger = logging.getLogger(__name__)

MEMORY_SHARE = 0.25
FORMAT = 2


@contextmanager
def find_cached_activations(
    request: RunnerRequest, *, spec: CompressionSpec, tokens: TokenSet, size: int
) -> Iterator["CachedActivations | None"]:
    """Where `request` keeps its streams: nowhere if it names no directory, or the `size` in bytes is too large."""
    if request.cache_directory is None or request.cache_bytes == 0:
        yield None
        return
    try:
        cache = ActivationCache(Path(request.cache_directory), limit=request.cache_bytes)
        room = cache.has_room(size)
    except OSError as error:  # such as a sandbox that does not let the runner write there
        logger.warning("nothing is kept for later jobs: %s", error)
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
    """Streams that only this job needs, gone when `stack` is left.

    In memory if `size` bytes are a small part of what is free; else in a directory `beside` the output, where there is
    a disk: the place for temporary files may be memory.
    """
    if memory and size <= MEMORY_SHARE * free_bytes(torch.device("cpu")):
        return MemoryStore()
    place = stack.enter_context(TemporaryDirectory(prefix=f".{beside.name}.streams-", dir=beside.parent))
    return FileStore(directory=Path(place))


def entry_key(directory: Path, *, tokens: TokenSet, compute: ComputeSpec) -> str:
    """64 hex digits. `compute` is resolved; `directory` holds the model."""
    facts = {
        "format": FORMAT,
        "model": model_digest(directory),
        "tokens": [tensor_digest(tokens.fit), tensor_digest(tokens.held_out)],
        "compute": compute.model_dump(mode="json"),
        "device": device_name(torch.device(compute.device or "cpu")),
        "versions": [str(torch.__version__), transformers.__version__],
        "code": code_digest(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@dataclass(kw_only=True)
class CachedActivations:
    """Streams of one key in `cache`. `facts` are numbers that go with them."""

    cache: ActivationCache
    key: str
    facts: dict[str, float] = field(default_factory=dict)
    _entry: Entry | None = None
    _draft: Draft | None = None

    def find(self) -> FileStore | None:
        """The complete streams of an earlier job."""
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
        """New streams, to be filled and then told of by `complete`."""
        self.close()
        self._draft = self.cache.draft()
        return FileStore(directory=self._draft.directory)

    def complete(self, streams: FileStore) -> None:
        """Let later jobs have them. Where they cannot be kept they still serve this one."""
        assert self._draft is not None, "nothing was begun"
        index = {name: [piece.as_dict() for piece in pieces] for name, pieces in streams.index.items()}
        self._entry = self._draft.publish(self.key, {"index": index, "facts": self.facts})
        if self._entry is not None:
            streams.directory = self._entry.directory

    def discard(self) -> None:
        """What was found is damaged: nobody is to find it again."""
        if self._entry is not None:
            self.cache.discard(self._entry)
        self.close()

    def close(self) -> None:
        """Let go of what is held; nothing may be read from it any more."""
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
            raise DamagedStore(f"{name} is not as long as it must be")
        streams.nbytes += streams.end(several)
    return streams, {str(name): float(value) for name, value in facts.items()}
