"""The store for the streams of a capture pass: named lists of tensors in files.

Files are read, not mapped: a tensor is then in memory that the allocator has aligned, so that its products round as
those of a tensor that never left memory, and no more than the present batch takes address space.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from replaceme_core.engine.model.block_runner import BlockRunner
from replaceme_core.engine.model.safetensors_io import read_tensor
from replaceme_core.errors import ReplaceMeError

_WORD = 8
_PAGE_WORDS = 512


class DamagedStore(ReplaceMeError):
    """A tensor is not what was written: a disk error, a truncated file, or a change by another program."""


class Piece(NamedTuple):
    """The place of one tensor in its file. `check` is the `checksum` of its bytes."""

    offset: int
    shape: Sequence[int]
    dtype: str
    check: int


@dataclass(kw_only=True)
class FileStore:
    """One file for each list under `directory`, tensors one after the other. `index` has the place of each.

    Tensors are returned on the host, bit for bit as they were put.
    """

    directory: Path
    index: dict[str, list[Piece]] = field(default_factory=dict)
    nbytes: int = 0

    def put(self, name: str, values: torch.Tensor) -> None:
        """Append to the list `name`."""
        values = values.detach().cpu().contiguous()
        data = _as_bytes(values)
        pieces = self.index.setdefault(name, [])
        with (self.directory / name).open("ab") as file:
            file.write(data.numpy().data)
        dtype = str(values.dtype).removeprefix("torch.")
        pieces.append(Piece(offset=self.end(pieces), shape=tuple(values.shape), dtype=dtype, check=checksum(data)))
        self.nbytes += values.nbytes

    def get(self, name: str, index: int) -> torch.Tensor:
        """Tensor `index` of the list `name`. Raises `DamagedStore`."""
        piece = self.index[name][index]
        try:
            values = read_tensor(
                self.directory / name, offset=piece.offset, shape=tuple(piece.shape), dtype=getattr(torch, piece.dtype)
            )
        except (OSError, EOFError) as error:
            raise DamagedStore(f"tensor {index} of {name} cannot be read: {error}") from error
        if checksum(_as_bytes(values)) != piece.check:
            raise DamagedStore(f"tensor {index} of {name} is not what was written")
        return values

    @staticmethod
    def end(pieces: Sequence[Piece]) -> int:
        """The length in bytes of the file of `pieces`."""
        if not pieces:
            return 0
        last = pieces[-1]
        return last.offset + torch.Size(last.shape).numel() * int(getattr(torch, last.dtype).itemsize)


def stream_key(block: int) -> str:
    """The name of the list with the stream before `block`, batch by batch."""
    return f"stream-{block}"


def write_key(block: int) -> str:
    """The name of the list with what the MLP of `block` writes, batch by batch."""
    return f"write-{block}"


def activation_bytes(block_runner: BlockRunner, *, tokens: int) -> int:
    """Bytes of all streams and writes of a pass over `tokens` tokens."""
    resolved, blocks = block_runner.resolved, len(block_runner.blocks)
    return int((2 * blocks + 1) * tokens * resolved.config.hidden_size * resolved.model.dtype.itemsize)


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
