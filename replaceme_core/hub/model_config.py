"""Checks a model's `config.json`, alone and against the weights, before anything is built from it. Torch-free.

It is untrusted input. A config of more blocks than there are would be built until memory ends; of one with fewer,
transformers leaves out the other blocks and says nothing.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeGuard

from replaceme_core.errors import BrokenModel, UnsafeModel, UnsupportedFamily
from replaceme_core.families.layout import AHEAD, LANGUAGE_MODEL, OWN_FIELDS, Inputs, Layout, lookup, unmet
from replaceme_core.hub.files import read_json_file
from replaceme_core.hub.model_files import PREPROCESSOR, SINGLE, read_config, side_files, weight_files
from replaceme_core.hub.quantized import KEY, scheme_of
from replaceme_core.hub.safetensors_header import TensorPlace
from replaceme_core.wording import counted, shorten

_FORBIDDEN_KEYS = ("auto_map", "_attn_implementation", "_attn_implementation_internal", "attn_implementation")
FILE_KEYS = ("transformers_weights", "gguf_file")
"""Keys that name files for transformers to load instead of the model's weights, pickles among them."""

MOST_LABELS = 10_000
_LARGEST_NUMBER = 2**128
"""No size is near it; what is computed of larger ones would be no float."""
_POSITIONS = ("n_positions", "max_position_embeddings")


@dataclass(frozen=True, kw_only=True)
class ModelOutline:
    """What `config.json` says about the size of a supported model."""

    layout: Layout
    blocks: int
    hidden_size: int
    auto_class: str = LANGUAGE_MODEL
    """The class of transformers that loads it."""
    positions: int | None = None
    """Of a model of images: how many positions of the stream one takes, as it is prepared (`as_prepared`)."""
    longest: int | None = None
    """Of a model with a table of positions: the tokens that a sequence may have, where its config says it."""

    @property
    def reads_images(self) -> bool:
        return self.layout.inputs is Inputs.IMAGES


def admit_config(config: Mapping[str, object]) -> ModelOutline:
    """Check the model type, that no custom code is named, and that the sizes are positive whole numbers.

    Raises `UnsupportedFamily` or `UnsafeModel`; both say which entry is wrong and what is expected.
    """
    for part in _parts(config):
        for key in _FORBIDDEN_KEYS:
            if key in part:
                raise UnsafeModel(
                    f"config.json sets {key!r}, which can run code that comes with the model; if transformers "
                    "implements the model type itself, use a copy of the model without this entry",
                    value=part[key],
                )
        for key, value in part.items():
            if type(value) is int and abs(value) > _LARGEST_NUMBER:
                raise UnsafeModel(
                    f"config.json gives {shorten(key, 80)} as {shorten(repr(value), 80)}, which is no size", value=key
                )
        refuse_file_keys(part)
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise UnsupportedFamily("config.json has no model_type, so this is not a transformers model", value=model_type)
    row = lookup(model_type)
    if isinstance(row, str):
        raise UnsupportedFamily(row, value=model_type)
    scheme_of(config)
    if any(KEY in part for part in _parts(config) if part is not config):
        raise UnsupportedFamily(
            "a part of the model is quantized; use the repository with the full-precision weights", value=KEY
        )
    auto_class = row.loads_with(config.get("architectures"))
    if auto_class is None:
        known = "that classifies images" if row.inputs is Inputs.IMAGES else "of a language model"
        raise UnsupportedFamily(
            f"this {model_type} model has a head that would be lost; use one that was saved without a head, or with "
            f"one {known}",
            value=config["architectures"],
        )
    text = row.part_of(config)
    if text.get("model_type", row.part_type) not in (row.part_type, model_type):
        raise UnsupportedFamily(
            f"the part that is compressed of a {model_type} model must be {row.part_type}, and this one is "
            f"{shorten(repr(text['model_type']), 80)}; save it alone and compress that",
            value=text["model_type"],
        )
    if reason := unmet(row, text):
        raise UnsupportedFamily(reason, value=model_type)
    _check_own_fields(row, text)
    lists = (text.get(name) for name in row.per_layer_lists)
    entries = next((len(each) for each in lists if isinstance(each, list)), None)  # some types write no number
    blocks, hidden_size = text.get(row.block_count, entries), text.get(row.width, text.get(_WIDTH_OF_BLOOM))
    if not _is_count(blocks) or not _is_count(hidden_size):
        place = "" if row.part is None else f" in {row.part}"
        raise UnsafeModel(
            f"config.json must give {row.block_count} and {row.width} as positive whole numbers{place}",
            value=[blocks, hidden_size],
        )
    labels = config.get("num_labels", 2)
    if not _is_count(labels) or labels > MOST_LABELS:  # transformers makes a name for each
        raise UnsafeModel(
            f"config.json gives num_labels as {shorten(repr(labels), 80)}; a language model has none, so leave it out",
            value=labels,
        )
    positions = None
    if row.inputs is Inputs.IMAGES:
        try:
            positions = row.positions(text)
        except ValueError as error:
            raise UnsafeModel(str(error), value=text.get("image_size")) from None
    tables = (text.get(name) for name in _POSITIONS if row.learned_positions)
    return ModelOutline(
        layout=row,
        blocks=blocks,
        hidden_size=hidden_size,
        auto_class=auto_class,
        positions=positions,
        longest=next(filter(_is_count, tables), None),
    )


def _parts(config: Mapping[str, object]) -> Iterator[Mapping[str, object]]:
    """The config, and the configs within it."""
    yield config
    for value in config.values():
        if isinstance(value, Mapping):
            yield from _parts(value)


def _check_own_fields(row: Layout, text: Mapping[str, object]) -> None:
    """Raise `UnsupportedFamily` if single blocks have other fields than those that the family's class gives them."""
    own = text.get(OWN_FIELDS)
    if own is None:
        return
    each = own.values() if isinstance(own, Mapping) else [None]
    if not all(isinstance(fields, Mapping) and fields.keys() <= set(row.own_fields) for fields in each):
        raise UnsupportedFamily(
            f"the model's blocks have configurations of their own ({OWN_FIELDS}); use one whose blocks share theirs",
            value=OWN_FIELDS,
        )


def as_prepared(outline: ModelOutline, config: Mapping[str, object], preparation: Mapping[str, object]) -> ModelOutline:
    """The outline with the positions of an image as it is prepared: DINOv2 gets smaller ones than its config gives.

    `preparation` is the content of `preprocessor_config.json`; where it gives no height and width, nothing changes.
    """
    row = outline.layout
    size = preparation.get("crop_size" if preparation.get("do_center_crop") else "size")
    sides = [size.get("height"), size.get("width")] if isinstance(size, Mapping) else size
    try:
        return replace(outline, positions=row.positions({**row.part_of(config), "image_size": sides}))
    except ValueError:
        return outline


def read_outline(directory: Path) -> ModelOutline:
    """The model in `directory` as its `config.json` describes it, with all files that will be used admitted.

    Raises `BrokenModel`, `UnsupportedFamily` or `UnsafeModel`.
    """
    config = read_config(directory)
    outline = admit_config(config)
    weight_files(directory)
    names = [path.name for path in side_files(directory)]
    if outline.reads_images and PREPROCESSOR in names:
        return as_prepared(outline, config, read_json_file(directory / PREPROCESSOR, PREPROCESSOR))
    return outline


def refuse_file_keys(config: Mapping[str, object]) -> None:
    """Raise `UnsafeModel` if `config` names files to load instead of the model's weights."""
    for key in FILE_KEYS:
        if key in config:
            raise UnsafeModel(
                f"config.json sets {key!r}, which names another file to load; remove it, the weights are those in "
                f"{SINGLE} or in the files of its index",
                value=config[key],
            )


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


DTYPES = ("F32", "BF16", "F16")
"""Of weights, in the names of safetensors."""
_BUFFERS = (
    *(".rotary_emb.inv_freq", ".position_ids"),
    *(".attn.bias", ".attn.causal_mask", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias"),
)
"""Ends of names under which older files have values that are no parameters, causal masks as U8 or BOOL among them."""
_EMBEDDINGS = (".embed_tokens.weight", ".wte.weight", ".embed_in.weight", ".word_embeddings.weight")
_WIDTH_OF_BLOOM = "n_embed"
"""In its first files."""
_EMBEDDING_WIDTH = "word_embed_proj_dim"
"""Of families whose embedding may be narrower than the stream."""


def read_weights(
    outline: ModelOutline, config: Mapping[str, object], tensors: Iterable[TensorPlace]
) -> list[TensorPlace]:
    """Those of the stored `tensors` that are loaded: not the buffers, and not what predicts tokens further ahead.

    Raises `BrokenModel` if blocks, vocabulary or width of the `config` are not theirs, and for one of a dtype that is
    not supported.
    """
    row, text = outline.layout, outline.layout.part_of(config)
    ahead = next((count for name in AHEAD if _is_count(count := text.get(name))), 0)
    kept = []
    for tensor in tensors:
        number = row.block_number(tensor.name)
        is_ahead = number is not None and outline.blocks <= number < outline.blocks + ahead
        if not is_ahead and not tensor.name.endswith(_BUFFERS):
            kept.append(tensor)
    _check(outline, text, kept)
    return kept


def _check(outline: ModelOutline, text: Mapping[str, object], tensors: Sequence[TensorPlace]) -> None:
    shapes, row = {tensor.name: tensor.shape for tensor in tensors}, outline.layout
    for tensor in tensors:
        if tensor.dtype not in DTYPES:
            raise BrokenModel(f"{tensor.name} is stored as {tensor.dtype}; F32, BF16 and F16 are supported")
    found = {number for name in shapes if (number := row.block_number(name)) is not None}
    missing = next(index for index in range(len(found) + 1) if index not in found)
    if missing < len(found):
        raise BrokenModel(
            f"the weights have blocks up to {max(found)}, but none with the number {missing}", value=missing
        )
    if len(found) != outline.blocks:
        raise BrokenModel(
            f"config.json gives {row.block_count} as {outline.blocks:,}, and the weights have "
            f"{counted(len(found), 'blocks')}; use the config that was saved with these weights",
            value=outline.blocks,
        )
    width = text.get(_EMBEDDING_WIDTH, outline.hidden_size)
    for name, shape in shapes.items():
        if not f".{name}".endswith(_EMBEDDINGS) or row.block_number(name) is not None or outline.reads_images:
            continue
        rows = text.get("vocab_size", shape[0] if shape else None)
        # Moshi has a row more, for no token
        if shape != (rows, width) and not (_is_count(rows) and shape == (rows + 1, width)):
            raise BrokenModel(
                f"config.json gives the vocabulary as {rows} and the width as {width}, and {name} is "
                f"{' x '.join(map(str, shape))}; use the config that was saved with these weights",
                value=[rows, width],
            )
