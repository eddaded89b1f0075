"""Safetensors files read and written one tensor at a time.

The library maps a whole file into the address space. Here a tensor is read on request and nothing else is held, so that
a model may be larger than memory.
"""

import json
import shutil
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from transformers.modeling_utils import str_to_torch_dtype

from replaceme_core.errors import BrokenModel
from replaceme_core.hub.safetensors_header import TensorPlace, damaged, read_headers

_NAMES = {dtype: name for name, dtype in str_to_torch_dtype.items()}


@dataclass(kw_only=True, eq=False, slots=True)
class StoredTensor(TensorPlace):
    """A tensor of the file at `path`. `[...]` reads it, as with a slice of the library."""

    path: Path
    known_finite: bool = False
    """Set by the first read: a block may be read many times."""

    def __getitem__(self, _: object) -> torch.Tensor:
        return self.read()

    def read(self, *, pinned: bool = False) -> torch.Tensor:
        """On the host, in the stored dtype. Raises `BrokenModel`, also for values that are not finite.

        `pinned`: in memory from which an accelerator copies while other work goes on.
        """
        dtype = str_to_torch_dtype[self.dtype]
        try:
            values = read_tensor(self.path, offset=self.offset, shape=self.shape, dtype=dtype, pinned=pinned)
        except EOFError:
            raise damaged(self.path.name, f"the file ends within {self.name}") from None
        if not self.known_finite and values.is_floating_point() and not all_finite(values):
            raise BrokenModel(
                f"{self.name} in {self.path.name} has values that are NaN or infinite; use weights without these",
                value=self.name,
            )
        self.known_finite = True
        return values


def read_tensor(
    path: Path, *, offset: int, shape: tuple[int, ...], dtype: torch.dtype, pinned: bool = False
) -> torch.Tensor:
    """The bytes of a file from `offset` on as a tensor on the host.

    Read, not mapped, into memory that the allocator has aligned. Raises `OSError`, and `EOFError` where the file ends.
    """
    values = torch.empty(shape, dtype=dtype, pin_memory=pinned)
    with path.open("rb") as file:
        file.seek(offset)
        if file.readinto(values.flatten().view(torch.uint8).numpy().data) < values.nbytes:
            raise EOFError("the file ends within it")
    return values


def all_finite(values: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite, from minimum and maximum, which NaN reaches as well.

    `isfinite` of a whole embedding takes six times as long, and more memory than a lazily loaded model.
    """
    values = values.float() if values.itemsize == 1 else values  # no library compares values of 8 bits
    return values.numel() == 0 or bool(torch.isfinite(torch.stack(torch.aminmax(values))).all())


def tensors_of(files: Sequence[Path]) -> list[StoredTensor]:
    """The tensors of a model's weight files, all in one directory. Raises `BrokenModel` as `read_headers` does."""
    paths = {path.name: path for path in files}

    def read(name: str, start: int, end: int) -> bytes:
        with paths[name].open("rb") as file:
            file.seek(start)
            return file.read(end - start)

    places = read_headers({name: path.stat().st_size for name, path in paths.items()}, read)
    return [StoredTensor(path=paths[one.file], **asdict(one)) for one in places]


@dataclass(kw_only=True)
class WeightsWriter:
    """Writes `model.safetensors`, or several files of at most `limit` bytes and their index, under `directory`.

    Data are written to disk as they come; the headers are known only at the end.
    """

    directory: Path
    limit: int
    _headers: list[dict[str, dict[str, object]]] = field(default_factory=list)
    _sizes: list[int] = field(default_factory=list)

    def add(self, name: str, values: torch.Tensor) -> None:
        """Append a tensor. One that is larger than the limit gets a file of its own."""
        values = values.detach().cpu().contiguous()
        if not self._sizes or (self._sizes[-1] and self._sizes[-1] + values.nbytes > self.limit):
            self._headers.append({})
            self._sizes.append(0)
        begin = self._sizes[-1]
        with self._data(len(self._sizes) - 1).open("ab") as file:
            if values.numel():
                file.write(values.flatten().view(torch.uint8).numpy().data)
        self._sizes[-1] = begin + values.nbytes
        self._headers[-1][name] = {
            "dtype": _NAMES[values.dtype],
            "shape": list(values.shape),
            "data_offsets": [begin, self._sizes[-1]],
        }

    def close(self) -> None:
        """Put the headers before the data, and name the files as `save_pretrained` does."""
        count = len(self._sizes)
        weight_map = {}
        for number, header in enumerate(self._headers):
            name = "model.safetensors" if count == 1 else f"model-{number + 1:05d}-of-{count:05d}.safetensors"
            raw = json.dumps({"__metadata__": {"format": "pt"}, **header}, separators=(",", ":")).encode()
            raw += b" " * (-len(raw) % 8)
            with (self.directory / name).open("xb") as target, self._data(number).open("rb") as source:
                target.write(struct.pack("<Q", len(raw)) + raw)
                shutil.copyfileobj(source, target)
            self._data(number).unlink()
            weight_map.update(dict.fromkeys(header, name))
        if count > 1:
            index = {"metadata": {"total_size": sum(self._sizes)}, "weight_map": weight_map}
            text = json.dumps(index, indent=2, sort_keys=True) + "\n"
            (self.directory / "model.safetensors.index.json").write_text(text, encoding="utf-8")

    def _data(self, number: int) -> Path:
        return self.directory / f"part-{number}.data"
