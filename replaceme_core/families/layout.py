"""Where a family of models keeps its blocks and writes its residual stream, and which of its blocks are of one kind.

The lists of a config that say so are kept up to date here, and compared with what others compute from the index. Knows
the standard library only.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, Self


class MapStructure(StrEnum):
    """Which entries of a linear map may differ from the identity.

    A norm between a projection and the residual stream admits a diagonal map only.
    """

    FULL = "full"
    DIAGONAL = "diagonal"


class FoldKind(StrEnum):
    """What kind of module absorbs the map T, and on which side of its weight. d is the width of the stream."""

    LINEAR = "linear"
    """`nn.Linear`, weight (d, f): `W <- T' W`, `b <- T' b`."""
    CONV1D = "conv1d"
    """transformers' `Conv1D`, weight (f, d): `W <- W T`, `b <- T' b`."""
    EXPERTS = "experts"
    """A parameter (experts, d, f): `W <- T' W` for each. Scaling by the router commutes with the map."""
    NORM = "norm"
    """The weight (d,) of a norm without bias, `w * x`: a diagonal map only, `w <- w T`."""
    NORM_PLUS_ONE = "norm_plus_one"
    """The same where the norm computes `(1 + w) * x`: `w <- (1 + w) T - 1`."""

    @property
    def diagonal(self) -> bool:
        """Whether it can absorb a diagonal map only."""
        return self in (FoldKind.NORM, FoldKind.NORM_PLUS_ONE)


@dataclass(frozen=True, kw_only=True)
class Fold:
    """One weight that absorbs the map: a module, or for `EXPERTS` a parameter; `path` is relative to a block."""

    path: str
    kind: FoldKind = FoldKind.LINEAR


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """The `field` of the config must have one of the `allowed` values, or be absent; `reason` explains why."""

    field: str
    allowed: tuple[str | int | bool | None, ...]
    reason: str


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One row of the table; paths are dotted and, below `blocks`, relative to a block unless it says otherwise.

    `Y = X + s * attention_write(X)`, `L = Y + s * mlp_write(Y)` (or `mlp_write(X)` where both run in parallel): the
    two modules whose outputs are added to the stream. Outputs may come as (batch, positions, d) or (tokens, d).
    """

    model_type: str
    blocks: str
    attention_write: str
    mlp_write: str
    folds: tuple[tuple[Fold, ...], ...]
    """One entry for each kind of block that the family mixes: all weights that absorb the map in such a block."""
    attention_reads: tuple[str, ...]
    """All parameters that multiply the input of the attention: the stream, after a norm if there is one."""
    mlp_reads: tuple[tuple[str, ...], ...]
    """The same for the MLP, one entry for each kind of block. A kind is known by its first parameter."""
    normed_writes: tuple[str, str] | None = None
    """In families where norms write to the stream: the projections of attention and MLP before these norms."""
    final_norm: Fold
    """The norm after the last block, relative to the model."""
    residual_multiplier: str | None = None
    """The config's field that holds s; 1 if there is none."""
    added_in_place: bool = False
    """The block adds into the tensor that `mlp_write` returned, so a hook must copy it."""
    block_returns_tuple: bool = False
    """The model takes element 0 of what a block returns."""
    switched_off: tuple[str, ...] = ()
    """Arguments of the model's forward that must be false while stubs replace its blocks."""

    block_count: str = "num_hidden_layers"
    width: str = "hidden_size"
    """Fields of `config.json`; on a live config transformers' own aliases work for every family."""

    per_layer_lists: tuple[str, ...] = ()
    """Fields of the config with one entry for each block."""
    index_lists: tuple[str, ...] = ()
    """Fields of the config that list blocks by their index."""
    thresholds: tuple[str, ...] = ()
    """Fields of the config with an index that separates blocks of two kinds."""
    periods: tuple["Period", ...] = ()
    steps: tuple[str, ...] = ()
    """Fields of the config with the step by which others compute the lists from the index of the block."""

    learned_positions: bool = False
    """Positions are rows of a table, so that no sequence may be longer than it (`max_position_embeddings`)."""
    neighbours_differ: bool = False
    """Blocks of two kinds alternate, so that no two neighbours can be merged."""
    requires: tuple[Requirement, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Period:
    """Every `step`-th block is of one kind, the others and those in `exceptions` of another; both are fields.

    Before blocks are removed it becomes a list of all exceptions and a step of 1, else kept blocks change their kind.
    """

    step: str
    exceptions: str


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why a model type is not supported, in a sentence that a user can act on."""

    model_type: str
    reason: str


class Config(Protocol):
    """A config of transformers."""

    num_hidden_layers: int

    def to_dict(self) -> dict[str, object]: ...

    @classmethod
    def from_dict(cls, config_dict: dict[str, object]) -> Self: ...


def follow_blocks(config: Config, *, layout: Layout, kept: Sequence[int]) -> None:
    """Change the `config` of a model in place, to describe those of its blocks that are `kept`, each in its kind.

    Patterns computed from the index come first: they are turned into lists, else a kept block would change its kind.
    A step that does not give the lists any more is left out.
    """
    blocks = config.num_hidden_layers
    for period in layout.periods:
        step, exceptions = getattr(config, period.step), set(getattr(config, period.exceptions) or ())
        listed = [index for index in range(blocks) if index in exceptions or (index + 1) % step != 0]
        setattr(config, period.exceptions, listed)
        setattr(config, period.step, 1)
    for name in layout.per_layer_lists:
        values = getattr(config, name, None)
        if isinstance(values, list | tuple):
            setattr(config, name, [values[index] for index in kept])
    for name in layout.index_lists:
        old = set(getattr(config, name, None) or ())
        setattr(config, name, [slot for slot, index in enumerate(kept) if index in old])
    for name in layout.thresholds:
        limit = getattr(config, name, None)
        if isinstance(limit, int):
            setattr(config, name, sum(index < limit for index in kept))
    config.num_hidden_layers = len(kept)
    if irregular_lists(config, layout=layout):
        for name in layout.steps:
            if name in vars(config):
                delattr(config, name)


def irregular_lists(config: Config, *, layout: Layout) -> tuple[str, ...]:
    """The lists of `config`, one entry for each block, that its class would compute otherwise if it had none.

    Converters to GGUF, MLX and ONNX compute kinds of blocks in the same way, from their index and a step, whatever the
    lists are. With blocks removed they would go wrong silently.
    """
    fields = config.to_dict()
    lists = {name: fields.pop(name) for name in layout.per_layer_lists if fields.get(name) is not None}
    if not lists:
        return ()
    computed = type(config).from_dict(fields)
    return tuple(name for name, values in lists.items() if list(getattr(computed, name, None) or ()) != values)


def keeps_pattern(config: Config, *, layout: Layout, removed: Sequence[int]) -> bool:
    """Whether all lists are still those that are computed from the index once the blocks `removed` are gone."""
    gone, changed = set(removed), deepcopy(config)
    follow_blocks(
        changed, layout=layout, kept=[index for index in range(config.num_hidden_layers) if index not in gone]
    )
    return not irregular_lists(changed, layout=layout)


def has_pattern(config: Config, *, layout: Layout) -> bool:
    """Whether the blocks are of several kinds, as one of the lists says."""
    lists = (getattr(config, name, None) for name in layout.per_layer_lists)
    return any(len(set(values)) > 1 for values in lists if isinstance(values, list | tuple))
