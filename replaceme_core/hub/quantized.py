"""Weights that are published quantized, and what they are read as: bfloat16.

MXFP4, as gpt-oss has it: 32 values share a scale, a power of two (OCP Microscaling Formats, version 1.0). FP8, as
DeepSeek-V3 and Qwen3 have it: a square of values shares a scale (arXiv 2412.19437, section 3.3). Imports no torch: the
API reads headers only.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

from replaceme_core.errors import BrokenModel, UnsupportedFamily
from replaceme_core.hub.safetensors_header import TensorPlace
from replaceme_core.wording import shorten

KEY = "quantization_config"
READ_AS, READ_BYTES = "BF16", 2
DEQUANTIZED = "dequantized"
"""The code of the warning about it."""
MXFP4_GROUP = 32
"""Values with one scale, two in each byte."""
_LARGEST_SQUARE = 4096
_BYTES_PER_VALUE = {"mxfp4": 17 / 32, "fp8": 1.0}
Place = TypeVar("Place", bound=TensorPlace)


class Method(StrEnum):
    MXFP4 = "mxfp4"
    FP8 = "fp8"


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """How weights are stored. `square` are the rows and columns of values that have one scale in FP8."""

    method: Method
    square: tuple[int, int] = (1, 1)

    @property
    def bytes_per_value(self) -> float:
        """About: of files nearly all of whose values are quantized."""
        return _BYTES_PER_VALUE[self.method]

    @property
    def note(self) -> str:
        """What to know of a result."""
        return (
            f"the weights of the original are stored as {self.method}; they are read as bfloat16, which the result is "
            "stored as: it may take more bytes than the original's files"
        )


@dataclass(frozen=True, kw_only=True)
class Packed(Generic[Place]):
    """A tensor that is stored as two: `place` is what it is read as, without a place in a file."""

    place: TensorPlace
    values: Place
    scales: Place


def scheme_of(config: Mapping[str, object]) -> Scheme | None:
    """`None` for weights in full precision. Raises `UnsupportedFamily` for a scheme that is not read."""
    given = config.get(KEY)
    if given is None:
        return None
    found = given if isinstance(given, Mapping) else {}
    method, square = found.get("quant_method"), _pair(found.get("weight_block_size"))
    if method == Method.MXFP4:
        return Scheme(method=Method.MXFP4)
    if method == Method.FP8 and found.get("activation_scheme", "dynamic") == "dynamic" and square is not None:
        return Scheme(method=Method.FP8, square=square)
    raise UnsupportedFamily(
        f"the weights are quantized ({shorten(repr(method), 40)}); read are mxfp4, and fp8 with weight_block_size and "
        "dynamic activations; otherwise use the repository with the full-precision weights",
        value=KEY,
    )


def _pair(value: object) -> tuple[int, int] | None:
    match value:
        case [int(rows), int(columns)] if 0 < rows <= _LARGEST_SQUARE and 0 < columns <= _LARGEST_SQUARE:
            return rows, columns
    return None


def unpacked(tensors: Sequence[Place], scheme: Scheme) -> list[Place | Packed[Place]]:
    """The tensors as they are read, in their order. Raises `BrokenModel` for parts that do not fit together."""
    stored = {one.name: one for one in tensors}
    values, scales = ("_blocks", "_scales") if scheme.method is Method.MXFP4 else ("", "_scale_inv")
    found: list[Place | Packed[Place]] = []
    for one in tensors:
        base = one.name.removesuffix(values)
        is_part = one.name.endswith(values) and f"{base}{scales}" in stored
        if is_part:
            found.append(_packed(base, one, stored[f"{base}{scales}"], scheme))
        elif not (one.name.endswith(scales) and f"{one.name.removesuffix(scales)}{values}" in stored):
            found.append(one)
    return found


def as_read(config: Mapping[str, object], tensors: Sequence[TensorPlace]) -> list[TensorPlace]:
    """Of a model of this config: what is in memory once its stored `tensors` are read. Raises as `unpacked` does."""
    scheme = scheme_of(config)
    if scheme is None:
        return list(tensors)
    return [one.place if isinstance(one, Packed) else one for one in unpacked(tensors, scheme)]


def _packed(name: str, values: Place, scales: Place, scheme: Scheme) -> Packed[Place]:
    find = _mxfp4_shape if scheme.method is Method.MXFP4 else _fp8_shape
    shape = find(values, scales, scheme)
    if shape is None:
        raise BrokenModel(
            f"{values.name} ({values.dtype}, {list(values.shape)}) and {scales.name} ({scales.dtype}, "
            f"{list(scales.shape)}) are no weights in {scheme.method}",
            value=name,
        )
    place = TensorPlace(name=name, file=values.file, dtype=READ_AS, shape=shape, offset=0, end=0)
    place.end = place.numel * READ_BYTES
    return Packed(place=place, values=values, scales=scales)


def _mxfp4_shape(values: TensorPlace, scales: TensorPlace, _: Scheme) -> tuple[int, ...] | None:
    """Of (experts, out, groups, bytes): (experts, in, out), which is how transformers multiplies them."""
    fits = values.dtype == scales.dtype == "U8" and len(values.shape) == 4 and scales.shape == values.shape[:-1]
    if not fits or values.shape[-1] * 2 != MXFP4_GROUP:
        return None
    experts, out, groups, _bytes = values.shape
    return experts, groups * MXFP4_GROUP, out


def _fp8_shape(values: TensorPlace, scales: TensorPlace, scheme: Scheme) -> tuple[int, ...] | None:
    if values.dtype != "F8_E4M3" or scales.dtype not in ("F32", "BF16") or len(values.shape) < 2:
        return None
    *lead, rows, columns = values.shape
    grid = (*lead, math.ceil(rows / scheme.square[0]), math.ceil(columns / scheme.square[1]))
    return values.shape if scales.shape == grid else None
