"""Build a tiny model of every type that the installed transformers knows, find its layout, prove it, write the table.

    python -m benchmarks.families [TYPE ...] [--check] [--workers 1]

Writes `replaceme_core/families/known.json` and `docs/reference/families.md`; with names, only these types are found and
shown, and nothing is written; with `--check`, nothing is written and a difference is an error. A new release of
transformers is: run it, read the diff, commit.

Each type is built from its own config with small sizes (`harness/tiny_models.py`), and again with each of its flags
turned; what is found in them becomes the row. A flag with which the methods do not work becomes a requirement. What a
config says of single blocks is found by changing one field at a time, and looking which blocks are of another kind. A
row is taken once tiny models without some of their blocks were saved, loaded with plain transformers, and gave the
logits of the live model with these blocks left out, with and without a cache.
"""

import argparse
import contextlib
import itertools
import json
import re
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import torch
import transformers
from pydantic import TypeAdapter
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedConfig
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from benchmarks.harness.discover import NotFound, discover, merged_kinds
from benchmarks.harness.tiny_models import (
    BLOCKS,
    IMAGE_TYPES,
    WIDTH,
    WITHOUT,
    Fields,
    answers,
    built,
    class_for,
    first_line,
    fitting_sizes,
    given,
    images,
    on_meta,
    run,
    sizes_of,
    tiny_config,
    tokens,
    variants,
)
from replaceme_core.engine.model.block_runner import BlockRunner
from replaceme_core.engine.model.changes import Cut, FittedCut, fold, remove_blocks, run_pruned
from replaceme_core.errors import NumericalFailure, UnsupportedFamily
from replaceme_core.families.layout import (
    LAYER_TYPES,
    OWN_FIELDS,
    Inputs,
    Known,
    Layout,
    MapStructure,
    Requirement,
    follow_blocks,
    irregular_lists,
    keeps_pattern,
    limits,
)
from replaceme_core.families.resolve import ResolvedModel, absorb_gains, kind

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "replaceme_core/families/known.json"
PAGE = ROOT / "docs/reference/families.md"

TOLERANCE = 1e-4
"""Relative difference of logits that are equal but for rounding."""
CACHE_TOLERANCE = 3e-3
"""The same where a recurrence is computed step by step instead of at once; wrong ones differ by a tenth and more."""

REASONS = {
    "scale_attn_by_inverse_layer_idx": (
        "its attention is scaled by the index of the block, which no config can pin once blocks are removed"
    ),
    "do_layer_norm_before": "its norms come after the sums (as in opt-350m), so its stream is not a sum of writes",
    "use_bidirectional_attention": (
        "it attends in both directions, so it is an encoder; causal language models are supported"
    ),
    "is_decoder": "it attends in both directions, so it is an encoder; causal language models are supported",
}
"""In words, what a flag does with which the proof fails; else the failure itself is the reason."""

BY_HAND = (
    Requirement(
        field="add_cross_attention",
        allowed=(None, False),
        reason="cross attention is a third write to the stream, and needs the states of an encoder",
    ),
    Requirement(
        field="hidden_size_per_layer_input",
        allowed=(None, 0),
        reason="each block reads inputs of its own, in a table of one width for all blocks",
    ),
    Requirement(
        field="num_kv_shared_layers",
        allowed=(None, 0),
        reason="its last blocks read keys and values of other blocks",
    ),
    Requirement(
        field="use_bidirectional_attention",
        allowed=(None, False),
        reason=REASONS["use_bidirectional_attention"],
    ),
)
"""Requirements of every type with the field, that a run on text or on one config may not show: in some types only a
fast attention looks at the last one."""

LAST_STAYS = ("gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text", "gpt_neox_japanese")
"""Their class makes the last block another one, whatever the config says: of full attention, or with a bias."""

ADDED = "deepstack_visual_indexes"
"""Of a tower for images: the field with one entry for each of its streams that is added after a block of the language
model, that of the same place in both lists."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What was found of one type."""

    model_type: str
    row: Layout | None = None
    reason: str | None = None


def find(model_type: str) -> Outcome:
    """The row of a type, or why there is none."""
    try:
        return Outcome(model_type=model_type, row=_find(model_type))
    except NotFound as error:
        return Outcome(model_type=model_type, reason=str(error))
    except Exception as error:  # whatever a class of transformers raises for a config that it made itself
        return Outcome(model_type=model_type, reason=f"it could not be examined: {first_line(error)}")


def _find(model_type: str) -> Layout:
    sizes = fitting_sizes(model_type)
    base = tiny_config(model_type, **sizes)
    text = tower(base)
    part = part_of(base)
    aliases = getattr(type(text), "attribute_map", {})
    row = replace(
        discover(built(base), text, given(model_type)),
        model_type=model_type,
        part=part,
        part_type=None if part is None else text.model_type,
        defaults=() if part is None else sizes_of(type(text)),
        auto_class=class_for(base).__name__,
        first_stay=f"vision_config.{ADDED}" if hasattr(getattr(base, "vision_config", None), ADDED) else None,
        block_count=aliases.get("num_hidden_layers", "num_hidden_layers"),
        width=aliases.get("hidden_size", "hidden_size"),
        tied=bool(getattr(type(base)(), "tie_word_embeddings", False)),  # of the whole model
    )
    own = text.to_dict().get(OWN_FIELDS) or {}
    names = {name: None for fields_of_block in own.values() for name in fields_of_block}
    row = replace(
        row, stored_blocks=stored_blocks(row, base), own_fields=tuple(names), keeps_last=model_type in LAST_STAYS
    )
    turned: dict[str, PreTrainedConfig] = {}
    for field, other in variants(text):
        with contextlib.suppress(Exception):  # not built that way, so nobody has such a model
            config = tiny_config(model_type, **{**sizes, field: other})
            run(config)
            turned[field] = config
    row = with_rules(row, [base, *turned.values()])
    prove(row, base)
    requirements = [one for one in BY_HAND if one.field in text.to_dict()]
    for field, config in turned.items():
        if any(one.field == field for one in requirements):
            continue
        try:
            other = discover(built(config), tower(config), given(model_type))
            wider = replace(
                row,
                kinds=merged_kinds([*row.kinds, *other.kinds]),
                added_in_place=row.added_in_place or other.added_in_place,
            )
            if other.blocks != row.blocks or other.final_norm not in (None, row.final_norm):
                raise NotFound("its modules are elsewhere")
            prove(wider, config)
            if wider != row:
                prove(wider, base)
            row = wider
        except NotFound as error:
            value = getattr(text, field)
            if field in WITHOUT:
                continue  # any other number of them is as this one
            reason = REASONS.get(field, str(error))
            requirements.append(Requirement(field=field, allowed=tuple({None: None, value: None}), reason=reason))
    return replace(row, requires=tuple(as_built(one, base) for one in requirements))


def as_built(one: Requirement, base: PreTrainedConfig) -> Requirement:
    """Without `None` where the class fills in a value that is not allowed; with what concerns images alone."""
    given, known = list(one.allowed), tower(base)
    if "'vision'" in repr(type(known).__annotations__.get(one.field)):
        given.insert(1, "vision")  # Gemma 4: tokens of images attend in both directions, and those of text do not
    if getattr(tower(type(base)()), one.field, None) not in given:
        given.remove(None)
    return replace(one, allowed=tuple(given))


def tower(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config of what is compressed: of the tower for images where a model is one of these, else for text."""
    return getattr(config, "vision_config", config) if config.model_type in IMAGE_TYPES else config.get_text_config()


def part_of(config: PreTrainedConfig) -> str | None:
    """The field that holds it; `None` where that is the whole config."""
    return next((name for name in type(config).sub_configs if getattr(config, name, None) is tower(config)), None)


def stored_blocks(row: Layout, config: PreTrainedConfig) -> tuple[str, ...]:
    """Other paths of the list of blocks in files: what transformers writes, and what it renames when it loads."""
    model, found = built(config), dict[str, None]()
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        with safe_open(f"{directory}/model.safetensors", framework="pt") as stored:
            places = {match.groups() for name in list(stored.keys()) if (match := re.match(r"(.+?)\.(\d+)\.", name))}
    for path, _ in sorted(places):
        if {number for other, number in places if other == path} == {str(number) for number in range(BLOCKS)}:
            found[path] = None
    for one in get_model_conversion_mapping(model):
        if isinstance(one, WeightRenaming):
            for source, target in itertools.product(one.source_patterns, one.target_patterns):
                plain, path = re.sub(r"\(\?!.*\)|[\^\\]", "", source).rstrip("."), f"{row.blocks}."
                if path.startswith(f"{target.rstrip('.')}."):
                    found[f"{plain}{row.blocks[len(target.rstrip('.')) :]}"] = None
    return tuple(path for path in found if path != row.blocks)


# What a config says of single blocks.


def kinds_of(config: PreTrainedConfig, row: Layout) -> list[object]:
    """The kind of each block, as the class of the config builds it. Raises `NotFound` if it cannot."""
    try:
        blocks = on_meta(config).get_submodule(row.blocks)
    except Exception as error:  # whatever a type raises for a config that it does not admit
        raise NotFound(f"a config without some blocks cannot be built: {first_line(error)}") from None
    assert isinstance(blocks, nn.ModuleList)
    lists = [getattr(tower(config), name, None) for name in row.per_layer_lists]
    if any(len(values) != len(blocks) for values in lists if isinstance(values, list | tuple)):
        raise NotFound("a list of its config has not one entry for each block")
    return [
        (kind(block), *(json.dumps(values[index]) for values in lists if isinstance(values, list | tuple)))
        for index, block in enumerate(blocks)
    ]


def followed(config: PreTrainedConfig, row: Layout, kept: Sequence[int]) -> PreTrainedConfig:
    """The config of the blocks that are kept. Raises `NotFound` where its class does not admit that."""
    changed = deepcopy(config)
    follow_blocks(tower(changed), layout=row, kept=kept)
    try:
        return type(changed).from_dict(changed.to_dict())
    except Exception as error:  # whatever the class raises
        raise NotFound(f"a config without some blocks is not admitted: {first_line(error)}") from None


REMOVALS = ([1], [2], [5], [4, 5], [2, 3], [1, 3], [2, 3, 4])


def follows(config: PreTrainedConfig, row: Layout) -> bool:
    """Whether every block that stays is of the kind that it was, once others are removed."""
    try:
        before = kinds_of(config, row)
        if len(before) != BLOCKS:
            return False
        for removed in REMOVALS:
            if row.keeps_last and BLOCKS - 1 in removed:
                continue
            kept = [block for block in range(BLOCKS) if block not in removed]
            wanted = [before[block] for block in kept]
            if all(one in wanted for one in before) and kinds_of(followed(config, row, kept), row) != wanted:
                return False
    except NotFound:
        return False
    return True


def with_rules(row: Layout, configs: Sequence[PreTrainedConfig]) -> Layout:
    """The row with what the fields of a config say of single blocks, each seen in one of the `configs` at least."""
    base, fields = configs[0], configs[0].get_text_config().to_dict()
    text = tower(base)
    lists = dict.fromkeys(name for name, value in fields.items() if _is_by_block(value))
    is_property = isinstance(getattr(type(text), LAYER_TYPES, None), property)
    if not is_property and LAYER_TYPES not in getattr(type(text), "attribute_map", {}):
        lists[LAYER_TYPES] = None
    row = replace(row, per_layer_lists=tuple(lists))
    orders = [(config, order(kinds)) for config in configs if (kinds := _known_kinds(config, row)) is not None]
    live = [name for name in fields if any(_changes_kinds(config, before, row, name) for config, before in orders)]
    numbers = [name for name in live if isinstance(fields[name], int)]
    for name in (name for name in live if name not in numbers):
        for step in (None, *numbers):
            periods = row.periods if step is None else (*row.periods, (step, name))
            ruled = replace(row, index_lists=(*row.index_lists, name), periods=periods)
            others = [_with(base, {name: listed}) for listed in ([1, 3], [2])]
            if all(follows(config, ruled) for config in (base, *others) if config is not None):
                row, numbers = ruled, [one for one in numbers if one != step]
                break
    for name in numbers:
        others = [_with(base, {name: value}) for value in (1, 2, 4)]
        for rule in ("thresholds", "last_indices"):
            ruled = replace(row, **{rule: (*getattr(row, rule), name)})
            if all(follows(config, ruled) for config in others if config is not None):
                row = ruled
                break
    for name in (name for name, value in fields.items() if name not in live and value and _is_indices(value)):
        ruled = replace(row, index_lists=(*row.index_lists, name))
        row = ruled if follows(base, ruled) else row
    for name in fields:
        if name not in live and any(_changes_lists(config, row, name) for config in configs):
            ruled = replace(row, thresholds=(*row.thresholds, name))
            regular = all(not irregular_lists(tower(one), layout=ruled) for one in all_followed(configs, ruled))
            row = ruled if regular else replace(row, steps=(*row.steps, *dict.fromkeys((name, name.lstrip("_")))))
    near = [_with(base, {name: value}) for name in live for value in (1, 2, 3, 4) if isinstance(fields[name], int)]
    row = replace(row, neighbours_differ=all(unlike(config, row) for config in (base, *near) if config is not None))
    if not all(follows(config, row) for config in configs):
        row = replace(row, computed_lists=tuple(name for name in dir(text) if _is_by_block(_property(text, name))))
    return row


def unlike(config: PreTrainedConfig, row: Layout) -> bool:
    """Whether no two neighbouring blocks are of one kind."""
    return all(one != other for one, other in itertools.pairwise(_known_kinds(config, row) or ()))


def _is_by_block(value: object) -> bool:
    """Whether it is a list with one entry for each block, and not one of their indices."""
    return isinstance(value, list) and len(value) == BLOCKS and not _is_indices(value)


def _property(config: PreTrainedConfig, name: str) -> object:
    """The value of a property of the config's class."""
    return getattr(config, name, None) if isinstance(getattr(type(config), name, None), property) else None


def _is_indices(value: object) -> bool:
    """Whether it is a list of block indices, or may be one."""
    if not isinstance(value, list) or not all(type(one) is int for one in value):
        return False
    return all(one < other for one, other in itertools.pairwise([-1, *value, BLOCKS]))


def all_followed(configs: Sequence[PreTrainedConfig], row: Layout) -> Iterator[PreTrainedConfig]:
    for config in configs:
        for removed in REMOVALS:
            with contextlib.suppress(NotFound):
                yield followed(config, row, [block for block in range(BLOCKS) if block not in removed])


def _with(config: PreTrainedConfig, changes: Fields) -> PreTrainedConfig | None:
    """The config with other values of some fields; `None` where its class does not admit them."""
    fields, part = config.to_dict(), part_of(config)
    with contextlib.suppress(Exception):
        whole = {**fields, **changes} if part is None else {**fields, part: {**fields[part], **changes}}
        return type(config).from_dict(whole)
    return None


def _known_kinds(config: PreTrainedConfig | None, row: Layout) -> list[object] | None:
    with contextlib.suppress(NotFound):
        return None if config is None else kinds_of(config, row)
    return None


def _changes_kinds(config: PreTrainedConfig, before: Sequence[int], row: Layout, name: str) -> bool:
    """Whether another value of the field gives other kinds of blocks, or another order than `before`."""
    value = tower(config).to_dict().get(name)
    if value is None or _is_indices(value):
        tries: list[object] = [[1, 3], [2]]
    elif type(value) is int and value <= 2 * BLOCKS and name != row.block_count:
        tries = [one for one in (1, 2, 3, 4) if one != value]
    else:
        return False
    tried = (_known_kinds(_with(config, {name: other}), row) for other in tries)
    return any(kinds is not None and order(kinds) != before for kinds in tried)


def order(kinds: Sequence[object]) -> list[int]:
    """Equal numbers for equal kinds, in the order of their first block."""
    seen: list[object] = []
    for one in kinds:
        if one not in seen:
            seen.append(one)
    return [seen.index(one) for one in kinds]


def _changes_lists(config: PreTrainedConfig, row: Layout, name: str) -> bool:
    """Whether the class computes lists of another order for another value of the field, where it has none."""
    fields = (text := tower(config)).to_dict()
    value = fields.get(name)
    if type(value) is not int or value > 2 * BLOCKS or name == row.block_count:
        return False
    free = {key: each for key, each in fields.items() if key not in row.per_layer_lists}
    orders = []
    for other in (1, 2, 3):
        with contextlib.suppress(Exception):
            computed = type(text).from_dict({**free, name: other, name.lstrip("_"): other})
            orders.append([order(getattr(computed, each, None) or ()) for each in row.per_layer_lists])
    return any(one != orders[0] for one in orders)


# The proof.


def prove(row: Layout, config: PreTrainedConfig) -> None:
    """Check the row on live models of this config, up to a pruned one that is loaded again. Raises `NotFound`."""
    try:
        _prove_live(row, config)
        before = kinds_of(config, row)
        tried = 0
        for removed in REMOVALS:
            kept = [block for block in range(BLOCKS) if block not in removed]
            if any(one not in [before[block] for block in kept] for one in before):
                continue  # some types need a block of each kind
            keeps = keeps_pattern(tower(config), layout=row, removed=removed)
            if (row.computed_lists or row.keeps_last) and not keeps:
                continue
            if kinds_of(followed(config, row, kept), row) != [before[block] for block in kept]:
                raise NotFound("each of its blocks is computed from its index, so none can go without changing others")
            _prove_pruned(row, config, removed)
            tried += 1
        if not tried:
            raise NotFound("each of its blocks is computed from its index, so none can go without changing others")
    except NumericalFailure:
        raise NotFound("its stream is not the sum of its writes") from None
    except (UnsupportedFamily, AttributeError, RuntimeError, TypeError, ValueError, IndexError) as error:
        raise NotFound(f"its proof failed: {first_line(error)}") from None


def _resolved(row: Layout, config: PreTrainedConfig) -> ResolvedModel:
    resolved = ResolvedModel(model=built(config), layout=row)
    for block in resolved.blocks:
        absorb_gains(resolved, block)
    return resolved


def _prove_live(row: Layout, config: PreTrainedConfig) -> None:
    """The stream is the sum of its writes, block by block as in one pass; folding a map is exact."""
    resolved = _resolved(row, config)
    with torch.inference_mode():
        runner = runner_of(resolved)
        runner.prove(sequences(row, seed=1))
        stream = runner.enter(sequences(row))
        runner.enter(sequences(row, seed=1))  # what is passed to blocks beside the stream must be the same for these
        for block in range(BLOCKS):
            stream = runner.run(block, stream)
        close("it gives other logits block by block", runner.leave(stream, sequences(row)), answers(resolved.model))
    generator = torch.Generator().manual_seed(5)
    delta = torch.randn(WIDTH, WIDTH, dtype=torch.float64, generator=generator) * 0.1
    if resolved.structure is MapStructure.DIAGONAL:
        delta = delta.diagonal().diag()
    fitted = FittedCut(cut=Cut(start=2, end=3), delta=delta)
    with torch.inference_mode():
        runner = runner_of(resolved)
        stream, _ = run_pruned(runner, runner.enter(sequences(row)), done=[fitted], until=BLOCKS - 1)
        beside = runner.leave(stream, sequences(row))
        fold(resolved, fitted)
        stream = runner.enter(sequences(row))
        for block in (0, 1, 4, 5):
            stream = runner.run(block, stream)
        close("a folded map is not the map", runner.leave(stream, sequences(row)), beside)


def _prove_pruned(row: Layout, config: PreTrainedConfig, removed: Sequence[int]) -> None:
    """Without some blocks, saved and loaded again, it gives the logits of the live model that leaves them out."""
    resolved = _resolved(row, config)
    with torch.inference_mode():
        runner = runner_of(resolved)
        stream = runner.enter(sequences(row))
        for block in range(BLOCKS):
            if block not in removed:
                stream = runner.run(block, stream)
        wanted = runner.leave(stream, sequences(row))
    remove_blocks(resolved, list(removed))
    with tempfile.TemporaryDirectory() as directory, torch.no_grad():
        resolved.model.save_pretrained(directory)
        again = class_for(config).from_pretrained(directory, attn_implementation="eager").eval()
        with contextlib.suppress(Exception):
            again.set_experts_implementation("eager")
        close("what is loaded again gives other results", answers(again), wanted)
        if row.inputs is Inputs.IMAGES:
            return
        with_cache, without = (
            torch.stack(
                again.generate(
                    tokens(1)[:, :8],
                    max_new_tokens=8,
                    do_sample=False,
                    use_cache=use,
                    pad_token_id=0,
                    eos_token_id=None,
                    output_logits=True,
                    return_dict_in_generate=True,
                ).logits
            )
            for use in (True, False)
        )
        close("it generates otherwise with a cache than without", with_cache, without, tolerance=CACHE_TOLERANCE)


def runner_of(resolved: ResolvedModel) -> BlockRunner:
    reads_images = resolved.layout.inputs is Inputs.IMAGES
    return BlockRunner(resolved=resolved, pixels=torch.cat([images(), images(seed=1)]) if reads_images else None)


def sequences(row: Layout, *, seed: int = 0) -> torch.Tensor:
    """Two sequences of tokens, or the numbers of two images."""
    return tokens(seed=seed) if row.inputs is Inputs.TEXT else torch.tensor([[2 * seed], [2 * seed + 1]])


def close(failure: str, one: torch.Tensor, other: torch.Tensor, *, tolerance: float = TOLERANCE) -> None:
    difference = float((one - other).norm() / other.norm())
    if not difference <= tolerance:
        raise NotFound(failure)


# The table and its page.

WRAPPERS = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

GROUPS: tuple[tuple[Mapping[str, object], str], ...] = (
    (
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        "it is an encoder-decoder, in which a cut would have to serve two stacks and their cross attention; use a "
        "decoder-only language model",
    ),
    (
        WRAPPERS,
        "it wraps a language model together with a vision or audio tower; save its language model alone and compress "
        "that",
    ),
    (
        dict.fromkeys(IMAGE_TYPES),
        "it is no list of blocks of one width that read all patches of an image at once, as in a vision transformer",
    ),
    (
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        "it is an encoder, not a causal language model; use a decoder-only language model",
    ),
)


def refusals(outcomes: Iterable[Outcome]) -> dict[str, str]:
    """Why each type that has no row is refused, those outside of causal language models by what they are."""
    reasons = {one.model_type: one.reason for one in outcomes if one.reason is not None}
    found = {one.model_type for one in outcomes if one.row is not None}
    for names, reason in GROUPS:
        for name in names:
            own = reasons.get(name)
            failed = own is None or own.startswith(("no tiny model", "it could not be examined"))
            examined = not failed and (names is WRAPPERS or name in IMAGE_TYPES)
            if name not in found and name in CONFIG_MAPPING and not examined:
                reasons[name] = reason
    return {name: f"model type {name!r} is not supported: {reason}" for name, reason in sorted(reasons.items())}


def table(outcomes: Sequence[Outcome]) -> str:
    """The text of `known.json`: defaults are left out."""
    rows = {one.model_type: one.row for one in outcomes if one.row is not None}
    known = Known(
        transformers=transformers.__version__, families=dict(sorted(rows.items())), refusals=refusals(list(outcomes))
    )
    text = TypeAdapter(Known).dump_json(known, indent=1, exclude_defaults=True).decode()
    weights = re.sub(r'\[\s+("[^"]+"),\s+(\d+),\s+null\s+\]', r"[\1, \2]", text)
    return re.sub(r'\[\s+("[^"]+"),\s+(\d+),\s+([\d.]+)\s+\]', r"[\1, \2, \3]", weights) + "\n"


def page(known: Known) -> str:
    """`docs/reference/families.md`."""
    rows = [
        f"| `{name}` | {row.structure} | {refitted(row)} | {remarks(row)} |" for name, row in known.families.items()
    ]
    reasons: dict[str, list[str]] = {}
    for name, reason in known.refusals.items():
        reasons.setdefault(reason.partition(": ")[2], []).append(name)
    refused = [f"- {reason}: {', '.join(f'`{name}`' for name in names)}." for reason, names in sorted(reasons.items())]
    return "\n".join(
        [
            *PAGE_HEAD.format(count=len(rows), release=known.transformers).splitlines(),
            *rows,
            *PAGE_REFUSED,
            *refused,
            "",
        ]
    )


PAGE_HEAD = """\
# Families of models

Written by `python -m benchmarks.families`, with transformers {release}: {count} model types. Of each, a tiny model with
random weights was built, its layout was found by running it, and a pruned one was saved, loaded with plain transformers
and compared. `map` is what can be folded into the block before a cut: a norm between it and the stream absorbs a
diagonal map only. `refit` says which outputs of blocks are solved again, beside their inputs; not those of experts.

A model that also reads images or sound is compressed in place: its language model becomes shallower, on text, and its
towers and the files of its processor stay as they are. A model that makes embeddings of images (`reads images`) is
compressed on images, and its tower for text, if there is one, stays as it is.

| `model_type` | map | refit | remarks |
|---|---|---|---|"""

PAGE_REFUSED = ("", "## Not supported", "")


def refitted(row: Layout) -> str:
    """Which writes have one linear module that computes them."""
    last = all(kind[-1].projection for kind in row.kinds)
    before = all(write.projection for kind in row.kinds for write in kind[:-1])
    if last and before:
        return "all outputs"
    some = any(write.projection for kind in row.kinds for write in kind)
    return "some outputs" if some else "inputs"


def remarks(row: Layout) -> str:
    """What a user should know beside."""
    what = "the tower for images" if row.inputs is Inputs.IMAGES else "the language model"
    found = ["reads images" if row.inputs is Inputs.IMAGES else None]
    found += [None if row.part is None else f"{what} (`{row.part_type}`) of a larger one", limits(row)]
    if row.computed_lists:
        found.append("only as many neighbouring blocks as its pattern is long, or a multiple")
    if row.first_stay:
        found.append(f"the first blocks stay, to which its tower adds (`{row.first_stay}`)")
    if row.keeps_last:
        found.append("the last block stays")
    if row.changes_stream:
        found.append("it changes the stream within a block, so only the last output is refitted")
    return "; ".join(filter(None, found)).replace("|", "/")


def quiet() -> None:
    """In each process: one thread, and none of the warnings about odd sizes."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.families", description=(__doc__ or "").split("\n", 1)[0]
    )
    parser.add_argument("types", nargs="*", metavar="TYPE", help="find and show these only; nothing is written")
    parser.add_argument("--check", action="store_true", help="write nothing; a difference is an error")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args(arguments)
    types = {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, *IMAGE_TYPES}
    names = options.types or sorted(name for name in types if name in CONFIG_MAPPING)
    outcomes = []
    # each type in a process of its own, so that none finds what another one has left in the library
    with get_context("fork").Pool(options.workers, initializer=quiet, maxtasksperchild=1) as pool:
        for outcome in pool.imap(find, names):
            outcomes.append(outcome)
            print(f"{outcome.model_type}: {'found' if outcome.row else outcome.reason}", file=sys.stderr, flush=True)
    if options.types:
        print(table(outcomes))
        return 0
    found = table(outcomes)
    texts = {TABLE: found, PAGE: page(TypeAdapter(Known).validate_json(found))}
    different = [path.name for path, text in texts.items() if not path.exists() or path.read_text() != text]
    if options.check:
        print("\n".join(f"{name} is not what this release gives" for name in different))
        return len(different)
    for path, text in texts.items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
