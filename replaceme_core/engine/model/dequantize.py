"""A model whose weights are published quantized, written once in bfloat16: all that follows reads that copy."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from replaceme_core.engine.model.safetensors_io import StoredTensor, WeightsWriter, tensors_of
from replaceme_core.engine.model.save import FILE_BYTES
from replaceme_core.hub.model_files import CONFIG, copy_files, read_config, side_files, weight_files
from replaceme_core.hub.quantized import KEY, Method, Packed, Scheme, as_read, scheme_of, unpacked
from replaceme_core.library_errors import require_space

_DTYPE = torch.bfloat16
_FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_BIAS = 127
"""Of an exponent that is stored as a byte (E8M0)."""


@contextmanager
def in_full_precision(directory: Path, *, beside: Path, writes: bool = True) -> Iterator[Path]:
    """`directory`; or, if its weights are quantized, a copy in bfloat16 in the directory of `beside`, until the end.

    `writes`: a result as large as that is written there too.
    Raises as `scheme_of` and `unpacked` do, and `OutOfSpace`.
    """
    config = read_config(directory)
    scheme = scheme_of(config)
    if scheme is None:
        yield directory
        return
    stored = tensors_of(weight_files(directory))
    beside.parent.mkdir(parents=True, exist_ok=True)
    size = sum(one.numel for one in as_read(config, stored)) * _DTYPE.itemsize
    purpose = "the weights in full precision" + (", and the result" if writes else "")
    require_space(beside.parent, (1 + writes) * size, purpose=purpose)
    with TemporaryDirectory(dir=beside.parent, prefix=f".{beside.name}.source-") as place:
        copy = Path(place)
        copy_files(side_files(directory), directory, copy)
        plain = {name: value for name, value in config.items() if name != KEY} | {"dtype": "bfloat16"}
        if "torch_dtype" in config:  # its older name, which a result has where its original does
            plain["torch_dtype"] = "bfloat16"
        (copy / CONFIG).write_text(json.dumps(plain), encoding="utf-8")
        writer = WeightsWriter(directory=copy, limit=FILE_BYTES)
        for one in unpacked(stored, scheme):
            if isinstance(one, Packed):
                writer.add(one.place.name, dequantized(one, scheme))
            else:
                writer.add(one.name, one.read())
        writer.close()
        yield copy


def dequantized(one: Packed[StoredTensor], scheme: Scheme) -> torch.Tensor:
    """The values of a tensor in bfloat16, of the shape `one.place.shape`. Raises as `StoredTensor.read` does."""
    values, scales = one.values.read(), one.scales.read()
    if scheme.method is Method.MXFP4:
        found = torch.empty(one.place.shape, dtype=_DTYPE)
        for number, (packed, exponents) in enumerate(zip(values, scales, strict=True)):  # one expert after the other
            found[number] = _from_mxfp4(packed, exponents).T
        return found
    rows, columns = values.shape[-2:]
    down, right = scheme.square
    grown = scales.float().repeat_interleave(down, dim=-2).repeat_interleave(right, dim=-1)
    return (values.float() * grown[..., :rows, :columns]).to(_DTYPE)


def _from_mxfp4(packed: torch.Tensor, exponents: torch.Tensor) -> torch.Tensor:
    """`packed` is (rows, groups, 16), `exponents` (rows, groups); returns (rows, groups * 32)."""
    table = torch.tensor([*_FP4, *(-one for one in _FP4)])
    pairs = torch.stack([table[(packed & 0x0F).int()], table[(packed >> 4).int()]], dim=-1)
    scaled = torch.ldexp(pairs.flatten(-2), (exponents.int() - _BIAS).unsqueeze(-1))
    return scaled.flatten(-2).to(_DTYPE)
