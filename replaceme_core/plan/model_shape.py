"""The sizes of a model, from its config and the headers of its weights: what every other file here computes with."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from replaceme_core.hub.model_config import ModelOutline, TensorSize, block_number, check_weights
from replaceme_core.hub.safetensors_header import ITEM_BYTES

_INNER = ("intermediate_size", "n_inner", "ffn_dim", "moe_intermediate_size")
_HEADS = ("num_attention_heads", "n_head")
_HEAD = "lm_head.weight"
TIED_BY_DEFAULT = frozenset({"falcon", "gemma", "gemma2", "gemma3_text", "gpt2", "opt", "smollm3"})
"""Families whose config ties the head to the embedding where it does not say; equal to transformers by a test."""
_BUFFERS = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias")
"""Ends of names under which some files have values that are no parameters; they are not saved again."""
_DEFAULT_INNER = 4


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Numbers of values, unless said otherwise.

    `block_values` has one entry for each block. `rest_values` are outside of blocks, tied ones counted once.
    `item_bytes` is the size of a stored value, of the dtype that most have.
    `inner` is the width of an MLP, `key_value_width` that of the keys of all heads together.
    """

    block_values: tuple[int, ...]
    rest_values: int
    block_tensors: int
    rest_tensors: int
    item_bytes: int
    width: int
    inner: int
    key_value_width: int
    vocabulary: int

    @property
    def blocks(self) -> int:
        """The number of blocks."""
        return len(self.block_values)

    @property
    def parameters(self) -> int:
        return self.rest_values + sum(self.block_values)

    @property
    def largest_block(self) -> int:
        return max(self.block_values)

    def parameters_after(self, removed: Sequence[int] | int) -> int:
        """Parameters without the blocks `removed`, or without so many blocks of the usual size."""
        if isinstance(removed, int):
            return self.parameters - round(removed * sum(self.block_values[1:]) / (self.blocks - 1))
        return self.parameters - sum(self.block_values[block] for block in removed)


def shape_of(outline: ModelOutline, config: Mapping[str, object], tensors: Sequence[TensorSize]) -> ModelShape:
    """The shape of an admitted model. Raises `BrokenModel` if config and weights are not of one model."""
    check_weights(outline, config, tensors)
    path = outline.layout.blocks
    kept = [tensor for tensor in tensors if not tensor.name.endswith(_BUFFERS)]
    tied = bool(config.get("tie_word_embeddings", outline.layout.model_type in TIED_BY_DEFAULT))
    blocks = [0] * outline.blocks
    rest, rest_tensors = 0, 0
    for tensor in kept:
        number = block_number(path, tensor.name)
        if number is not None:
            blocks[number] += tensor.numel
        elif not (tied and tensor.name == _HEAD):
            rest, rest_tensors = rest + tensor.numel, rest_tensors + 1
    values = Counter[int]()
    for tensor in kept:
        values[ITEM_BYTES[tensor.dtype]] += tensor.numel
    width = outline.hidden_size
    return ModelShape(
        block_values=tuple(blocks),
        rest_values=rest,
        block_tensors=(len(kept) - rest_tensors) // outline.blocks,
        rest_tensors=rest_tensors,
        item_bytes=values.most_common(1)[0][0],
        width=width,
        inner=_first(config, _INNER) or _DEFAULT_INNER * width,
        key_value_width=_key_value_width(config, width),
        vocabulary=_first(config, ("vocab_size",)) or 0,
    )


def rough_shape(outline: ModelOutline, config: Mapping[str, object], *, weight_bytes: int) -> ModelShape:
    """The shape as the size of the weight files says it: all blocks alike, two bytes for each value.

    For processes that a stranger's headers are kept away from.
    """
    width, vocabulary = outline.hidden_size, _first(config, ("vocab_size",)) or 0
    values = max(weight_bytes // 2, outline.blocks)
    rest = min(2 * vocabulary * width, values // 2)
    return ModelShape(
        block_values=((values - rest) // outline.blocks,) * outline.blocks,
        rest_values=rest,
        block_tensors=0,
        rest_tensors=0,
        item_bytes=2,
        width=width,
        inner=_first(config, _INNER) or _DEFAULT_INNER * width,
        key_value_width=_key_value_width(config, width),
        vocabulary=vocabulary,
    )


def _key_value_width(config: Mapping[str, object], width: int) -> int:
    heads = _first(config, _HEADS) or 1
    each = _first(config, ("head_dim",)) or width // heads
    return each * (_first(config, ("num_key_value_heads", "num_kv_heads")) or heads)


def _first(config: Mapping[str, object], names: Sequence[str]) -> int | None:
    """The first of the fields that is a positive whole number."""
    found = (config.get(name) for name in names)
    return next((value for value in found if type(value) is int and value > 0), None)
