"""Stores for the streams of a capture pass: named lists of tensors, in memory or in files.

Files are read, not mapped: a tensor is then in memory that the allocator has aligned, so that its products round as
those of a tensor that never left memory, and no more than the present batch takes address space.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol, Self

import torch

from replaceme_core.engine.model.block_runner import BlockRunner
from replaceme_core.engine.model.safetensors_io import read_tensor
from replaceme_core.errors import ReplaceMeError
from replaceme_core.request.defaults import HELD_OUT_BYTES

logger = logging.getLogger(__name__)

_WORD = 8
_PAGE_WORDS = 512


class DamagedStore(ReplaceMeError):
    """A tensor is not what was written: a disk error, a truncated file, or a change by another program."""


class TensorStore(Protocol):
    """Lists of tensors by name. Tensors are returned bit for bit as they were put."""

    def put(self, name: str, values: torch.Tensor) -> None:
        """Append to the list `name`."""

    def get(self, name: str, index: int) -> torch.Tensor:
        """Tensor `index` of the list `name`, on the host. Raises `DamagedStore`."""

    def count(self, name: str) -> int:
        """How many tensors the list `name` has."""

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""


@dataclass(kw_only=True)
class MemoryStore:
    """In the memory of the host, also for tensors of an accelerator."""

    nbytes: int = 0
    _lists: dict[str, list[torch.Tensor]] = field(default_factory=dict)

    def put(self, name: str, values: torch.Tensor) -> None:
        self._lists.setdefault(name, []).append(values.cpu())
        self.nbytes += values.nbytes

    def get(self, name: str, index: int) -> torch.Tensor:
        return self._lists[name][index]

    def count(self, name: str) -> int:
        return len(self._lists.get(name, ()))


@dataclass(frozen=True, kw_only=True)
class Piece:
    """The place of one tensor in its file. `check` is the `checksum` of its bytes."""

    offset: int
    shape: tuple[int, ...]
    dtype: str
    check: int

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


@dataclass(kw_only=True)
class FileStore:
    """One file for each list under `directory`, tensors one after the other. `index` has the place of each."""

    directory: Path
    index: dict[str, list[Piece]] = field(default_factory=dict)
    nbytes: int = 0

    def put(self, name: str, values: torch.Tensor) -> None:
        values = values.detach().cpu().contiguous()
        data = _as_bytes(values)
        pieces = self.index.setdefault(name, [])
        offset = self.end(pieces)
        with (self.directory / name).open("r+b" if pieces else "xb", buffering=0) as file:
            file.seek(offset)
            left = memoryview(data.numpy().data)
            while left:
                left = left[file.write(left) :]
        dtype = str(values.dtype).removeprefix("torch.")
        pieces.append(Piece(offset=offset, shape=tuple(values.shape), dtype=dtype, check=checksum(data)))
        self.nbytes += values.nbytes

    def get(self, name: str, index: int) -> torch.Tensor:
        piece = self.index[name][index]
        try:
            values = read_tensor(
                self.directory / name, offset=piece.offset, shape=piece.shape, dtype=getattr(torch, piece.dtype)
            )
        except (OSError, EOFError) as error:
            raise DamagedStore(f"tensor {index} of {name} cannot be read: {error}") from error
        if checksum(_as_bytes(values)) != piece.check:
            raise DamagedStore(f"tensor {index} of {name} is not what was written")
        return values

    def count(self, name: str) -> int:
        return len(self.index.get(name, ()))

    @staticmethod
    def end(pieces: Sequence[Piece]) -> int:
        """The length in bytes of the file of `pieces`."""
        if not pieces:
            return 0
        last = pieces[-1]
        return last.offset + torch.Size(last.shape).numel() * int(getattr(torch, last.dtype).itemsize)


def pieces_of(index: Mapping[str, list[dict[str, object]]]) -> dict[str, list[Piece]]:
    """An `index` from its JSON form. Raises `DamagedStore`."""
    try:
        return {
            name: [
                Piece(
                    offset=int(str(row["offset"])),
                    shape=tuple(row["shape"]),  # type: ignore[arg-type]
                    dtype=str(row["dtype"]),
                    check=int(str(row["check"])),
                )
                for row in rows
            ]
            for name, rows in index.items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedStore(f"the index of the streams cannot be read: {error!r}") from error


def stream_key(block: int) -> str:
    """The name of the list with the stream before `block`, batch by batch."""
    return f"stream-{block}"


def write_key(block: int) -> str:
    """The name of the list with what the MLP of `block` writes, batch by batch."""
    return f"write-{block}"


def activation_bytes(block_runner: BlockRunner, *, tokens: int) -> int:
    """Bytes of all streams and writes of a pass over `tokens` tokens."""
    model, blocks = block_runner.resolved.model, len(block_runner.blocks)
    return int((2 * blocks + 1) * tokens * model.config.hidden_size * model.dtype.itemsize)


def checksum(data: torch.Tensor) -> int:
    """Of bytes (n,): the sum of their 64-bit words, those of each page of 4 KiB times an odd number.

    Finds every changed bit and every page that is lost, zeroed or in the place of another one. It is no SHA-256 as in
    `verified_file`, since all streams are read again for every cut: it runs at the speed of memory.
    """
    whole = len(data) // _WORD * _WORD
    words = data[:whole].view(torch.int64)
    paged = len(words) // _PAGE_WORDS * _PAGE_WORDS
    sums = words[:paged].view(-1, _PAGE_WORDS).sum(dim=1)
    factors = torch.arange(1, 2 * len(sums) + 1, 2)
    rest = int(words[paged:].sum()) + int(data[whole:].to(torch.int64).sum()) + len(data)
    return ((int((sums * factors).sum()) + (2 * len(sums) + 1) * rest) + 2**63) % 2**64 - 2**63


def _as_bytes(values: torch.Tensor) -> torch.Tensor:
    return values.flatten().view(torch.uint8)


@dataclass(kw_only=True)
class SpillingStore:
    """In memory up to `limit` bytes, then in a directory `beside` the output, which `close` deletes.

    If writing fails, everything is moved back to memory and the directory is deleted: the output needs the space.
    """

    beside: Path
    limit: int = HELD_OUT_BYTES
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
