"""Checks a model's `config.json`, before any weights are downloaded. It is untrusted input.

Imports no torch, so that the API can refuse a request at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeGuard

from replaceme_core.errors import UnsafeModel, UnsupportedFamily
from replaceme_core.families.layout import Layout, Refusal
from replaceme_core.families.table import lookup, unmet
from replaceme_core.hub.model_files import SINGLE
from replaceme_core.json_values import shorten

_FORBIDDEN_KEYS = ("auto_map", "_attn_implementation", "_attn_implementation_internal", "attn_implementation")
FILE_KEYS = ("transformers_weights", "gguf_file")
"""Keys that name files for transformers to load instead of the model's weights, pickles among them."""

MOST_LABELS = 10_000


@dataclass(frozen=True, kw_only=True)
class ModelOutline:
    """What `config.json` says about the size of a supported model."""

    layout: Layout
    blocks: int
    hidden_size: int


def admit_config(config: Mapping[str, object]) -> ModelOutline:
    """Check the model type, that no custom code is named, and that the sizes are positive whole numbers.

    Raises `UnsupportedFamily` or `UnsafeModel`; both say which entry is wrong and what is expected.
    """
    for key in _FORBIDDEN_KEYS:
        if key in config:
            raise UnsafeModel(
                f"config.json sets {key!r}, which can run code that comes with the model; remove it, "
                "only models that transformers implements itself are accepted",
                field="model",
                value=config[key],
            )
    refuse_file_keys(config)
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
    labels = config.get("num_labels", 2)
    if not _is_count(labels) or labels > MOST_LABELS:  # transformers makes a name for each
        raise UnsafeModel(
            f"config.json gives num_labels as {shorten(repr(labels), 80)}; a language model has none, so leave it out",
            field="model",
            value=labels,
        )
    if blocks < 2:
        raise UnsupportedFamily(
            f"the model has {blocks} block; at least 2 are needed, since block 0 stays", field="model", value=blocks
        )
    return ModelOutline(layout=row, blocks=blocks, hidden_size=hidden_size)


def refuse_file_keys(config: Mapping[str, object]) -> None:
    """Raise `UnsafeModel` if `config` names files to load instead of the model's weights."""
    for key in FILE_KEYS:
        if key in config:
            raise UnsafeModel(
                f"config.json sets {key!r}, which names another file to load; remove it, the weights are those in "
                f"{SINGLE} or in the files of its index",
                field="model",
                value=config[key],
            )


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
