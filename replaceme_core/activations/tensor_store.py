"""Where the streams of a capture pass are kept: named lists of tensors, in memory or in files.

Files are written and read, not mapped: what is read lies in memory that the allocator has aligned, so that products of
it round as those of a tensor that never left memory, and it takes no address space beyond the batch at hand.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import torch

from replaceme_core.errors import ReplaceMeError
from replaceme_core.models.block_runner import BlockRunner
from replaceme_core.numerics.moments import SOLVE_DTYPE

_WORD = 8
_PAGE_WORDS = 512


class DamagedStore(ReplaceMeError):
    """What is read is not what was written: a disk error, a file cut short, or somebody else's hands."""


class TensorStore(Protocol):
    """Lists of tensors by name. What was put is returned bit for bit."""

    def put(self, name: str, values: torch.Tensor) -> None:
        """Append to the list `name`."""

    def get(self, name: str, index: int) -> torch.Tensor:
        """On the host. Raises `DamagedStreams`."""

    def count(self, name: str) -> int:
        """How many tensors the list `name` has."""

    @property
    def nbytes(self) -> int:
        """Bytes of all that was put."""


@dataclass(kw_only=True)
class MemoryStore:
    """On the host, whatever the device."""

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
    """One tensor in its file. `check` is `checksum` of its bytes."""

    offset: int
    shape: tuple[int, ...]
    dtype: str
    check: int

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


@dataclass(kw_only=True)
class FileStore:
    """One file a list under `directory`, tensors one after the other. `index` says where each lies."""

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
        values = torch.empty(piece.shape, dtype=getattr(torch, piece.dtype))
        data = _as_bytes(values)
        view = memoryview(data.numpy().data)
        try:
            descriptor = os.open(self.directory / name, os.O_RDONLY | os.O_CLOEXEC)
            try:
                done = 0
                while done < len(view):
                    count = os.preadv(descriptor, [view[done:]], piece.offset + done)
                    if count == 0:
                        raise DamagedStore(f"{name} ends before its tensor {index} does")
                    done += count
            finally:
                os.close(descriptor)
        except OSError as error:
            raise DamagedStore(f"{name} cannot be read: {error}") from error
        if checksum(data) != piece.check:
            raise DamagedStore(f"tensor {index} of {name} is not what was written")
        return values

    def count(self, name: str) -> int:
        return len(self.index.get(name, ()))

    @staticmethod
    def end(pieces: Sequence[Piece]) -> int:
        """How long the file of `pieces` is."""
        if not pieces:
            return 0
        last = pieces[-1]
        return last.offset + torch.Size(last.shape).numel() * int(getattr(torch, last.dtype).itemsize)


def pieces_of(index: Mapping[str, list[dict[str, object]]]) -> dict[str, list[Piece]]:
    """An `index` as JSON gives it back. Raises `DamagedStreams`."""
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
    """Of the list with the stream before `block`, batch by batch."""
    return f"stream-{block}"


def write_key(block: int) -> str:
    """Of the list with what the MLP of `block` writes."""
    return f"write-{block}"


def gram_key(block: int) -> str:
    """Of the list with the sums M'M of `block`."""
    return f"gram-{block}"


def activation_bytes(block_runner: BlockRunner, *, tokens: int) -> int:
    """Bytes of all streams, writes and sums of a pass over `tokens` tokens."""
    model, blocks = block_runner.resolved.model, len(block_runner.blocks)
    width = model.config.hidden_size
    streams = (2 * blocks + 1) * tokens * width * model.dtype.itemsize
    sums = blocks * 3 * width * width * SOLVE_DTYPE.itemsize
    return int(streams + sums)


def checksum(data: torch.Tensor) -> int:
    """Of bytes (n,): the sum of their 64-bit words, those of each page of 4 KiB times an odd number of its own.

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
