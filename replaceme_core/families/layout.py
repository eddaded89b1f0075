"""Where a family of models keeps its blocks and writes its residual stream. Knows the standard library only."""

from dataclasses import dataclass
from enum import StrEnum


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
