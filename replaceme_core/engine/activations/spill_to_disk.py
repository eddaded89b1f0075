"""A store that takes a fixed amount of memory, however long the text: the rest is on disk."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

import torch

from replaceme_core.engine.activations.tensor_store import FileStore, MemoryStore

MEMORY_BYTES = 64 * 2**20
"""For SmolLM2 in bfloat16: the streams before one anchor block on 58,000 held-out tokens, or before 22 on 2,600."""
logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class SpillingStore:
    """In memory up to `limit` bytes, then in a directory `beside` the output, which `close` deletes.

    If writing fails, everything is moved back to memory and the directory is deleted: the output needs the space.
    """

    beside: Path
    limit: int = MEMORY_BYTES
    _memory: MemoryStore = field(default_factory=MemoryStore)
    _files: FileStore | None = None
    _place: "TemporaryDirectory[str] | None" = None
    _refused: bool = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def put(self, name: str, values: torch.Tensor) -> None:
        """As `TensorStore.put`."""
        fits = self._files is None and self._memory.nbytes + values.nbytes <= self.limit
        if fits or self._refused:
            self._memory.put(name, values)
            return
        try:
            self._on_disk().put(name, values)
        except OSError as error:
            logger.warning("the held-out streams stay in memory, they cannot be written to disk: %s", error)
            self._back_to_memory()
            self._memory.put(name, values)

    def get(self, name: str, index: int) -> torch.Tensor:
        """As `TensorStore.get`."""
        first = self._memory.count(name)
        if self._files is None or index < first:
            return self._memory.get(name, index)
        return self._files.get(name, index - first)

    def count(self, name: str) -> int:
        """As `TensorStore.count`."""
        return self._memory.count(name) + (0 if self._files is None else self._files.count(name))

    @property
    def nbytes(self) -> int:
        """As `TensorStore.nbytes`."""
        return self._memory.nbytes + (0 if self._files is None else self._files.nbytes)

    def close(self) -> None:
        """Delete the files; tensors on disk cannot be read afterwards."""
        if self._place is not None:
            self._place.cleanup()
        self._place = self._files = None

    def _on_disk(self) -> FileStore:
        if self._files is None:
            self._place = TemporaryDirectory(prefix=f".{self.beside.name}.held-out-", dir=self.beside.parent)
            self._files = FileStore(directory=Path(self._place.name))
        return self._files

    def _back_to_memory(self) -> None:
        self._refused = True
        if self._files is not None:
            for name in self._files.index:
                for index in range(self._files.count(name)):
                    self._memory.put(name, self._files.get(name, index))
        self.close()
