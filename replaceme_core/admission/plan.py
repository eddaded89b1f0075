"""What can be said about a model from its `config.json` and file list alone, before anything is downloaded.

Torch-free, so that the API can refuse a job while the client still waits.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeGuard

from replaceme_core.errors import InvalidInput, UnsafeModel, UnsupportedFamily
from replaceme_core.families.layout import Layout, Refusal
from replaceme_core.families.table import lookup, unmet
from replaceme_core.map_structure import MapStructure
from replaceme_core.method_traits import TRAITS, Method
from replaceme_core.spec import CompressionSpec

WEIGHTS_SUFFIX = ".safetensors"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")
_FORBIDDEN_KEYS = ("auto_map", "_attn_implementation", "_attn_implementation_internal", "attn_implementation")
CARRIED_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "LICENSE",
)
"""What a smaller model takes over from its source as it is."""
_SIDE_FILES = ("config.json", "generation_config.json", "model.safetensors.index.json", *CARRIED_FILES)


@dataclass(frozen=True, kw_only=True)
class ModelOutline:
    """A supported model as its config describes it."""

    layout: Layout
    blocks: int
    hidden_size: int


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def admit_config(config: Mapping[str, object]) -> ModelOutline:
    """Treat `config.json` as hostile input: a known model type, no custom code, sizes that are sizes.

    Raises `UnsupportedFamily` or `UnsafeModel`; both name the field and what would be right.
    """
    for key in _FORBIDDEN_KEYS:
        if key in config:
            raise UnsafeModel(
                f"config.json sets {key!r}, which can run code that comes with the model; remove it, "
                "only models that transformers implements itself are accepted",
                field="model",
                value=config[key],
            )
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise UnsupportedFamily(
            "config.json has no model_type, so this is not a transformers model", field="model", value=model_type
        )
    row = lookup(model_type)
    if isinstance(row, Refusal):
        raise UnsupportedFamily(row.reason, field="model", value=model_type)
    if "quantization_config" in config:
        raise UnsupportedFamily(
            "the weights are quantised; use the repository with the full-precision weights",
            field="model",
            value="quantization_config",
        )
    if refusal := unmet(row, config):
        raise UnsupportedFamily(refusal.reason, field="model", value=model_type)
    if "per_layer_config" in config:
        raise UnsupportedFamily(
            "the model's blocks have configurations of their own (per_layer_config); use one whose blocks share theirs",
            field="model",
            value="per_layer_config",
        )
    blocks, hidden_size = config.get(row.block_count), config.get(row.width)
    if not _is_count(blocks) or not _is_count(hidden_size):
        raise UnsafeModel(
            f"config.json must give {row.block_count} and {row.width} as positive whole numbers",
            field="model",
            value=[blocks, hidden_size],
        )
    if blocks < 2:
        raise UnsupportedFamily(
            f"the model has {blocks} block; at least 2 are needed, since block 0 stays", field="model", value=blocks
        )
    return ModelOutline(layout=row, blocks=blocks, hidden_size=hidden_size)


def admit_files(paths: tuple[str, ...]) -> tuple[str, ...]:
    """The files of a model repository that are worth downloading: safetensors at the top, tokenizer and configs.

    Raises `UnsafeModel` where the weights are only there as pickles, or not at all.
    """
    weights = [path for path in paths if path.endswith(WEIGHTS_SUFFIX) and "/" not in path]
    if not weights:
        pickles = [path for path in paths if path.endswith(PICKLE_SUFFIXES)]
        found = f"only {', '.join(sorted(pickles)[:3])}, which can run code when loaded" if pickles else "no weights"
        raise UnsafeModel(
            f"the repository has {found}; weights must be safetensors (model.safetensors)",
            field="model",
            value=sorted(pickles)[:3],
        )
    return tuple(sorted([*weights, *(path for path in paths if path in _SIDE_FILES)]))


def methods_of(row: Layout) -> tuple[Method, ...]:
    """The methods that work for a family."""
    return tuple(method for method in Method if not (TRAITS[method].needs_like_blocks and row.neighbours_differ))


def structures_of(row: Layout) -> tuple[MapStructure, ...]:
    """The maps that a family takes over, the default first."""
    diagonal = any(fold.kind.diagonal for folds in row.folds for fold in folds)
    return (MapStructure.DIAGONAL,) if diagonal else (MapStructure.FULL, MapStructure.DIAGONAL)


def check_structure(spec: CompressionSpec, row: Layout) -> None:
    """Raises `InvalidInput` for a map that the family cannot take over."""
    possible, asked = structures_of(row), spec.method.structure
    if asked is not None and asked not in possible:
        raise InvalidInput(
            f"between the MLP of {row.model_type} and its stream stands a norm, so only a diagonal map can be folded",
            field="method.structure",
            value=asked,
        )


def check_removal(spec: CompressionSpec, outline: ModelOutline) -> int:
    """How many blocks `spec` removes from this model. Raises `InvalidInput` for what this model does not have."""
    check_structure(spec, outline.layout)
    if spec.drop is None:
        assert spec.ratio is not None
        remove, groups = blocks_to_remove(spec.ratio, outline.blocks), spec.method.groups
        most = min(remove, outline.blocks - remove)  # each takes a block away and has a kept one before it
        if groups > most:
            raise InvalidInput(
                f"{remove} of {outline.blocks} blocks can be removed in at most {most} groups, each behind a block "
                f"that stays; got {groups}",
                field="method.groups",
                value=groups,
            )
        return remove
    beyond = [block for block in spec.drop if block >= outline.blocks]
    if beyond:
        raise InvalidInput(
            f"the model has blocks 0 to {outline.blocks - 1}; there is no block {beyond[0]}",
            field="drop",
            value=list(spec.drop),
        )
    return len(spec.drop)


def block_ranges(blocks: Iterable[int]) -> str:
    """Blocks as a person writes them.

    >>> block_ranges([3, 12, 13, 14, 20])
    '3, 12-14, 20'
    """
    runs: list[list[int]] = []
    for block in sorted(blocks):
        if runs and block == runs[-1][1] + 1:
            runs[-1][1] = block
        else:
            runs.append([block, block])
    return ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in runs)


def blocks_to_remove(ratio: float, blocks: int) -> int:
    """How many of `blocks` a ratio removes: rounded half up, at least 1, at most all but one.

    >>> blocks_to_remove(0.25, 30)
    8
    """
    return min(max(math.floor(ratio * blocks + 0.5), 1), blocks - 1)
