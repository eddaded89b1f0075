"""Where a family of models keeps its blocks and writes its residual stream, and which of its blocks are of one kind.

The rows are in `known.json`, which `python -m benchmarks.families` writes: it builds a tiny model of each type that the
installed transformers knows, finds the layout by running it, and proves it. The lists of a config that say what each
block is are kept up to date here, and compared with what others compute from the index. Torch-free.
"""

import json
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from enum import StrEnum
from importlib.resources import files
from operator import attrgetter
from typing import Any, NamedTuple

from pydantic import TypeAdapter

from replaceme_core.wording import shorten


class MapStructure(StrEnum):
    """Which entries of a linear map may differ from the identity.

    A norm between a projection and the residual stream admits a diagonal map only.
    """

    FULL = "full"
    DIAGONAL = "diagonal"


class Inputs(StrEnum):
    """What a model reads, and so what calibrates and judges it."""

    TEXT = "text"
    IMAGES = "images"


LANGUAGE_MODEL = "AutoModelForCausalLM"
IMAGE_MODEL = "AutoModel"
"""Builds and loads a model of images without a head."""
IMAGE_CLASSIFIER = "AutoModelForImageClassification"
"""Builds and loads a model of images that was saved with its head."""
_OTHER_HEADS = ("Classification", "QuestionAnswering")
"""Ends of the names of classes that put another head on a language model: `LANGUAGE_MODEL` would leave it out."""


class Weight(NamedTuple):
    """A parameter, by its dotted path, and its `axis` of the width d of the stream.

    For a module that writes the stream, multiplying the axis by T multiplies what is written by T; for one that reads
    it, the axis is the one that is summed over.
    """

    path: str
    axis: int
    offset: float | None = None
    """Of a norm that computes `(offset + w) * x`, whose weight w (d,) absorbs a diagonal map only; else `None`."""

    @property
    def module(self) -> str:
        """The path of the module that has it."""
        return self.path.rpartition(".")[0]


@dataclass(frozen=True, kw_only=True)
class Write:
    """What a block adds to the stream at one place; all paths are relative to the block."""

    module: str
    """The module whose output is added, as (batch, positions, d) or (tokens, d)."""
    scale: str | None = None
    """The config's field with the factor by which the output is multiplied first; 1 if there is none."""
    projection: Weight | None = None
    """Of the linear module that computes the output, or what a norm `module` then normalises; `None` for experts."""
    folds: tuple[Weight, ...] = ()
    """All weights that together absorb a map of the output. The bias of each, if it has one, absorbs it as well."""
    reads: tuple[Weight, ...] = ()
    """All weights that multiply the input of what computes the output: the stream, after a norm if there is one."""
    gain: str | None = None
    """A weight (d,) that the output is multiplied by last; a model that is opened has it in `folds` instead, and ones
    here."""
    unit: str | None = None
    """The module that computes the output and nothing else, so that it need not run where the output is known."""
    returns: int = 0
    """How many values `unit` returns as a tuple, the output first; 0 for the output alone."""

    @property
    def norm(self) -> Weight | None:
        """The weight of `module`, where that is a norm of the projection's output."""
        return None if self.projection is None or self.projection.module == self.module else self.folds[0]


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """The `field` of the config must have one of the `allowed` values: `None` is absent. `reason` explains why."""

    field: str
    allowed: tuple[str | int | bool | None, ...]
    reason: str


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One row of the table: `L = X + sum of scale * write`, for the stream X before a block and L after it.

    Where a family changes X on the way (`changes_stream`), the last write alone is known: L is linear in it.
    """

    model_type: str
    inputs: Inputs = Inputs.TEXT
    """What the blocks read."""
    part: str | None = None
    """Of a model of several towers: the field of its config with that of the one that is compressed.

    All fields below are those of that config.
    """
    part_type: str | None = None
    """The `model_type` of that config."""
    defaults: tuple[tuple[str, int], ...] = ()
    """Its sizes, by field, where a file leaves them to the class, as the first files of some types do."""
    auto_class: str = LANGUAGE_MODEL
    """The class of transformers that builds and loads the whole model; of one of images, that without a head."""
    blocks: str
    """The list of blocks, by its dotted path."""
    stored_blocks: tuple[str, ...] = ()
    """Other paths that the list may have in files, which transformers renames while it loads them."""
    kinds: tuple[tuple[Write, ...], ...]
    """For each kind of block that the family mixes, its writes in the order of their computation.

    A block is of the first kind whose modules and parameters it has. The last write absorbs the map.
    """
    final_norm: Weight | None = None
    """The weight of the norm after the last block, relative to the model; `None` for a norm without one."""
    changes_stream: bool = False
    added_in_place: bool = False
    """Blocks add into the tensor that the module of a write returned, so a hook must copy it."""
    block_returns: int = 0
    """How many values a block returns as a tuple, the stream first; 0 for the stream alone."""

    block_count: str = "num_hidden_layers"
    width: str = "hidden_size"
    """Fields of `config.json`; on a live config transformers' own aliases work for every family."""

    per_layer_lists: tuple[str, ...] = ()
    """Fields of the config with one entry for each block."""
    index_lists: tuple[str, ...] = ()
    """Fields of the config that list blocks by their index."""
    thresholds: tuple[str, ...] = ()
    """Fields of the config with an index that separates blocks of two kinds."""
    last_indices: tuple[str, ...] = ()
    """Fields of the config with the index of the last block of a kind."""
    periods: tuple[tuple[str, str], ...] = ()
    """Pairs of fields, a step and exceptions: blocks at a step are of one kind, the others and exceptions of another.

    Before blocks are removed it becomes a list of all exceptions and a step of 1, else kept blocks change their kind.
    """
    steps: tuple[str, ...] = ()
    """Fields of the config with the step by which others compute the lists from the index of the block."""
    computed_lists: tuple[str, ...] = ()
    """Properties of the config with one entry for each block, computed from its index: no list can say otherwise.

    Only blocks without which all others keep their entries can go.
    """

    tied: bool = False
    """The head is the embedding, unless a config says otherwise."""
    own_fields: tuple[str, ...] = ()
    """Fields that the class gives to single blocks by their index (`OWN_FIELDS`)."""
    keeps_last: bool = False
    """The class forces the kind of the last block, so that this one must stay."""
    beside_patches: int = 0
    """Of images: how many positions there are beside one for each patch, such as that of the class."""
    first_stay: str | None = None
    """The field of the whole config, by its dotted path, with one entry for each of the first blocks that a tower adds
    to by their index; these blocks must stay."""
    learned_positions: bool = False
    """Positions are rows of a table, so that no sequence may be longer than it (`max_position_embeddings`)."""
    neighbours_differ: bool = False
    """Blocks of two kinds alternate, so that no two neighbours can be merged."""
    requires: tuple[Requirement, ...] = ()

    def loads_with(self, architectures: object) -> str | None:
        """The class that loads all of a model whose config names these `architectures`; `None` if none does."""
        name = str(architectures[0] if isinstance(architectures, list | tuple) and architectures else "Model")
        if self.inputs is Inputs.TEXT:
            return None if name.endswith(_OTHER_HEADS) else self.auto_class
        if name.endswith("Model"):
            return self.auto_class
        return IMAGE_CLASSIFIER if name.endswith("ForImageClassification") and self.part is None else None

    def block_number(self, name: str) -> int | None:
        """The block that a stored tensor belongs to, by the tensor's name; `None` if to none.

        Weights may have been saved without the head, so without the first part of the path; those of a tower for images
        with a head, which is not in the path.
        """
        paths = tuple(filter(None, (self.blocks, self.blocks.partition(".")[2], *self.stored_blocks)))
        if self.inputs is Inputs.IMAGES and self.part is None and not name.startswith(paths):
            name = name.partition(".")[2]
        found = re.match(rf"(?:{'|'.join(map(re.escape, paths))})\.([0-9]{{1,7}})(?:\.|\Z)", name)
        return None if found is None else int(found[1])

    def part_of(self, config: Mapping[str, object]) -> Mapping[str, object]:
        """What the content of a `config.json` says of the compressed tower, and the sizes that its class adds.

        Where the config has no such part it says it itself, as the first files of some types do.
        """
        found = None if self.part is None else config.get(self.part)
        found = config if found is None else found
        return {**dict(self.defaults), **found} if isinstance(found, Mapping) else {}

    def positions(self, config: Mapping[str, object]) -> int:
        """How many positions of the stream an image takes, by the config of its tower; raises `ValueError`."""
        sides = [_sides(config.get(name)) for name in ("image_size", "patch_size")]
        if not all(sides):
            raise ValueError("config.json must give image_size and patch_size as positive whole numbers")
        (height, width), (tall, wide) = sides
        if height < tall or width < wide:
            raise ValueError(f"images of {height} x {width} have no patch of {tall} x {wide}")
        return (height // tall) * (width // wide) + self.beside_patches

    @property
    def structure(self) -> MapStructure:
        """The structure of the maps that blocks can absorb, of some models of the family at least."""
        diagonal = all(any(weight.offset is not None for weight in kind[-1].folds) for kind in self.kinds)
        return MapStructure.DIAGONAL if diagonal else MapStructure.FULL


def _sides(value: object) -> Sequence[int]:
    """Height and width, from both or from one for both; nothing for what is no size."""
    both = value if isinstance(value, list | tuple) else (value, value)
    return both if len(both) == 2 and all(type(side) is int and 0 < side < 2**16 for side in both) else ()


@dataclass(frozen=True, kw_only=True)
class Known:
    """All rows, and which release of transformers they were found with.

    `refusals`: by model type, why there is no row, in a sentence that a user can act on.
    """

    transformers: str
    families: dict[str, Layout]
    refusals: dict[str, str]


KNOWN = TypeAdapter(Known).validate_json(files(__package__).joinpath("known.json").read_bytes())
FAMILIES, REFUSALS = KNOWN.families, KNOWN.refusals


def lookup(model_type: str) -> Layout | str:
    """The row of `model_type`, or why there is none."""
    row = FAMILIES.get(model_type) or REFUSALS.get(model_type)
    if row is not None:
        return row
    shown = shorten(model_type, 80)
    return f"model type {shown!r} is not known; `replaceme families` and GET /families list those that are"


def unmet(row: Layout, config: Mapping[str, object]) -> str | None:
    """The reason why a model of this row's type with this `config` is refused; `None` if it is not."""
    for one in row.requires:
        value = config.get(one.field)
        if value not in one.allowed:
            said = f"sets {one.field} to {shorten(repr(value), 80)}" if value is not None else f"leaves {one.field} out"
            return f"this {row.model_type} model {said}: {one.reason}"
    return None


def limits(row: Layout) -> str | None:
    """A sentence that says which models of a supported type are refused; `None` if none are."""
    found = []
    for one in row.requires:
        words = " or ".join(json.dumps(value) for value in one.allowed if value is not None)
        found.append(f"not with {one.field} other than {words}: {one.reason}")
    return "; ".join(found) or None


ATTENTION = frozenset({"attention", "full_attention", "sliding_attention", "chunked_attention"})
"""What lists call blocks that keep keys and values; all others keep states of another kind."""

LAYER_TYPES = "layer_types"
"""The list that caches of transformers go by, whether a file has it or the class computes it. In any config that has
it, transformers checks that there is one entry for each block."""

OWN_FIELDS = "per_layer_config"
"""The field of a config with the fields that single blocks have otherwise, by the index of the block."""


AHEAD = ("num_nextn_predict_layers", "num_mtp_layers")
"""Fields with the number of blocks after the last one that are stored to predict tokens further ahead. transformers
loads none of them, and a result has none."""


STAGES = "stage_names"
"""Of models that serve as a backbone: names of the streams before the first block and after each one. Those that others
read (`out_indices`) become the last ones before them that stay."""


_OLDER_PATTERNS = """
    first_k_dense_replace full_attention_interval global_attn_every_n_layers index_skip_topk_offset index_topk_freq
    index_topk_pattern linear_attn_config moe_layer_freq moe_layers_enum no_rope_layer_interval
"""
"""Keys of older configs from which classes compute a list that is missing, and keep them as they are."""


Config = Any
"""A config of transformers, which is not imported here."""


def follow_blocks(config: Config, *, layout: Layout, kept: Sequence[int]) -> None:
    """Change the `config` of a model in place, to describe those of its blocks that are `kept`, each in its kind.

    Patterns computed from the index come first: they are turned into lists, else a kept block would change its kind.
    A step that does not give the lists any more is left out.
    """
    blocks = config.num_hidden_layers
    for step, exceptions in layout.periods:
        every, known = getattr(config, step), set(getattr(config, exceptions) or ())
        setattr(config, exceptions, [index for index in range(blocks) if index in known or (index + 1) % every != 0])
        setattr(config, step, 1)
    for name in layout.per_layer_lists:
        values = getattr(config, name, None)
        if isinstance(values, list | tuple):
            setattr(config, name, [values[index] for index in kept])
    for name in layout.index_lists:
        listed = getattr(config, name, None)
        if isinstance(listed, list | tuple):
            setattr(config, name, [slot for slot, index in enumerate(kept) if index in listed])
    for names, past in ((layout.thresholds, 0), (layout.last_indices, 1)):
        for name in names:
            limit = getattr(config, name, None)
            if isinstance(limit, int) and limit >= 0:
                setattr(config, name, sum(index < limit + past for index in kept) - past)
    for name in _OLDER_PATTERNS.split():
        if name in vars(config) and name not in type(config).__dataclass_fields__:
            delattr(config, name)  # the lists say it
    for name in AHEAD:
        if getattr(config, name, None):
            setattr(config, name, 0)
    own = config.to_dict().get(OWN_FIELDS)
    config.num_hidden_layers = len(kept)
    stages = getattr(config, STAGES, None)
    if isinstance(stages, list) and len(stages) == blocks + 1:
        places = [stage % len(stages) for stage in getattr(config, "out_indices", None) or ()]
        setattr(config, STAGES, stages[: len(kept) + 1])
        config.out_indices = sorted({sum(index < place for index in kept) for place in places})
    if isinstance(own, dict):
        by_index = {int(index): values for index, values in own.items()}
        of_kept = {slot: by_index[index] for slot, index in enumerate(kept) if index in by_index}
        setattr(config, OWN_FIELDS, of_kept)
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
    try:
        computed = type(config).from_dict(fields)
    except Exception:  # of a class that cannot use the step in its file: EXAONE 4 has "LLLG", or none
        return tuple(name for name, one in lists.items() if isinstance(one, list) and len(set(map(str, one))) > 1)
    return tuple(name for name, values in lists.items() if list(getattr(computed, name, None) or ()) != values)


def first_blocks(config: Config, *, layout: Layout) -> int:
    """How many of the first blocks must stay, by the whole config of a model."""
    entries = None if layout.first_stay is None else attrgetter(layout.first_stay)(config)
    return len(entries) if isinstance(entries, list | tuple) else 0


def must_stay(config: Config, *, layout: Layout, removed: Sequence[int], first: int = 0) -> str | None:
    """Why the blocks `removed` cannot all go, whatever is wanted; `None` if they can. The `first` ones must stay."""
    blocks, gone = config.num_hidden_layers, set(removed)
    if gone and min(gone) < first:
        return (
            f"the first {first} blocks of this {layout.model_type} model must stay: features of images are added there"
        )
    if layout.keeps_last and blocks - 1 in gone:
        return f"the last block of a {layout.model_type} model must stay: its class forces the kind of the last block"
    for name in dict.fromkeys((*layout.per_layer_lists, *layout.computed_lists, LAYER_TYPES)):
        values = getattr(config, name, None)
        if not isinstance(values, list | tuple) or not ATTENTION.intersection(map(str, values)):
            continue
        kept = [value in ATTENTION for index, value in enumerate(values) if index not in gone]
        if any(value not in ATTENTION for value in values) and len(set(kept)) < 2:
            return f"a {layout.model_type} model needs blocks with attention and others, or its caches do not work"
    return None


def keeps_pattern(config: Config, *, layout: Layout, removed: Sequence[int]) -> bool:
    """Whether all lists are still those that are computed from the index once the blocks `removed` are gone."""
    gone, changed = set(removed), deepcopy(config)
    kept = [index for index in range(config.num_hidden_layers) if index not in gone]
    follow_blocks(changed, layout=layout, kept=kept)
    for name in layout.computed_lists:
        entries = getattr(config, name)
        if list(getattr(changed, name)) != [entries[index] for index in kept]:
            return False
    return not irregular_lists(changed, layout=layout)


def has_pattern(config: Config, *, layout: Layout) -> bool:
    """Whether the blocks are of several kinds, as one of the lists says."""
    lists = (getattr(config, name, None) for name in layout.per_layer_lists)
    return any(len(set(values)) > 1 for values in lists if isinstance(values, list | tuple))
