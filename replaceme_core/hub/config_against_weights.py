"""Compares a config with the names and shapes of the stored weights, before anything is built from it. Torch-free.

Both are untrusted input. A config of more blocks than there are would be built until memory ends; of one with fewer,
transformers leaves out the other blocks and says nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from replaceme_core.errors import BrokenModel
from replaceme_core.hub.model_config import ModelOutline
from replaceme_core.wording import counted

DTYPES = ("F32", "BF16", "F16")
"""Of weights, in the names of safetensors."""
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
_EMBEDDING_WIDTH = "word_embed_proj_dim"
"""Of families whose embedding may be narrower than the stream."""


class TensorSize(Protocol):
    """A tensor in a weight file, as its header describes it."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def numel(self) -> int: ...


def check_weights(outline: ModelOutline, config: Mapping[str, object], tensors: Sequence[TensorSize]) -> None:
    """Raise `BrokenModel` if blocks, vocabulary or width of the `config` are not those of the weights, which are

    all the stored `tensors`; and for one of a dtype that is not supported.
    """
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    for tensor in tensors:
        if tensor.dtype not in DTYPES:
            raise BrokenModel(
                f"{tensor.name} is stored as {tensor.dtype}; F32, BF16 and F16 are supported", field="model"
            )
    row = outline.layout
    found = _blocks(row.blocks, shapes)
    missing = next(index for index in range(len(found) + 1) if index not in found)
    if missing < len(found):
        raise BrokenModel(
            f"the weights have blocks up to {max(found)}, but none with the number {missing}",
            field="model",
            value=missing,
        )
    if len(found) != outline.blocks:
        raise BrokenModel(
            f"config.json gives {row.block_count} as {outline.blocks:,}, and the weights have "
            f"{counted(len(found), 'blocks')}; use the config that was saved with these weights",
            field="model",
            value=outline.blocks,
        )
    width = config.get(_EMBEDDING_WIDTH, outline.hidden_size)
    for name, shape in shapes.items():
        if not name.endswith(_EMBEDDINGS) or block_number(row.blocks, name) is not None:
            continue
        rows = config.get("vocab_size", shape[0] if shape else None)
        if shape != (rows, width):
            raise BrokenModel(
                f"config.json gives the vocabulary as {rows} and the width as {width}, and {name} is "
                f"{' x '.join(map(str, shape))}; use the config that was saved with these weights",
                field="model",
                value=[rows, width],
            )


def _blocks(path: str, shapes: Mapping[str, tuple[int, ...]]) -> frozenset[int]:
    """The numbers of the blocks at `path`."""
    numbers = (block_number(path, name) for name in shapes)
    return frozenset(number for number in numbers if number is not None)


def block_number(path: str, name: str) -> int | None:
    """The block that a tensor belongs to. Weights may have been saved without the head, so without the first name.

    >>> block_number("model.layers", "model.layers.3.mlp.weight"), block_number("model.layers", "layers.12.norm.weight")
    (3, 12)
    """
    inside = next((each for each in (path, path.partition(".")[2]) if name.startswith(f"{each}.")), None)
    if inside is None:
        return None
    number = name[len(inside) + 1 :].partition(".")[0]
    return int(number) if number.isascii() and number.isdigit() and len(number) < 8 else None
