"""Where a family of models keeps its blocks and writes its residual stream. Knows the standard library only."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One row of the table; paths are dotted and, below `blocks`, relative to a block.

    `Y = X + attention_write(X)`, `L = Y + mlp_write(Y)`: the two modules whose outputs are added to the stream.
    `fold` is the linear layer that takes over the map: `W <- T' W`.
    """

    model_type: str
    blocks: str
    attention_write: str
    mlp_write: str
    fold: str
    per_layer_lists: tuple[str, ...]
    """Fields of the config with one entry a block, to be trimmed with the blocks."""


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why a model type is not supported, in a sentence that a user can act on."""

    model_type: str
    reason: str
