"""What may be removed from a model: how many blocks, which ones together, and with which methods and maps."""

import math
import re
from collections.abc import Callable, Iterable, Sequence

from replaceme_core.errors import CalibrationTooSmall, InvalidInput, UnsupportedFamily
from replaceme_core.families.layout import (
    FAMILIES,
    REFUSALS,
    Config,
    Layout,
    MapStructure,
    has_pattern,
    irregular_lists,
    keeps_pattern,
    limits,
    must_stay,
)
from replaceme_core.hub.model_config import ModelOutline
from replaceme_core.request.fields import MOST_NAMED_BLOCKS
from replaceme_core.request.method import TRAITS, Method, MethodSpec, Selection
from replaceme_core.request.spec import CompressionSpec
from replaceme_core.shapes import Family
from replaceme_core.wording import counted


def methods_of(row: Layout) -> tuple[Method, ...]:
    """The methods that work for a family."""
    return tuple(method for method in Method if not (TRAITS[method].needs_like_blocks and row.neighbours_differ))


def families() -> tuple[Family, ...]:
    """The supported families, then those that are refused; each sorted by name."""
    supported = (
        Family(
            model_type=row.model_type,
            inputs=str(row.inputs),
            methods=methods_of(row),
            structures=structures_of(row.structure),
            reason=limits(row),
        )
        for _, row in sorted(FAMILIES.items())
    )
    refused = (Family(model_type=name, supported=False, reason=reason) for name, reason in sorted(REFUSALS.items()))
    return *supported, *refused


def structures_of(absorbed: MapStructure) -> tuple[MapStructure, ...]:
    """The structures of a map that can be folded into blocks that absorb maps of this one, the default first."""
    return (absorbed,) if absorbed is MapStructure.DIAGONAL else (MapStructure.FULL, MapStructure.DIAGONAL)


def check_structure(spec: CompressionSpec, absorbed: MapStructure, *, model_type: str) -> None:
    """Raise `InvalidInput` if a map of the requested structure cannot be folded into blocks that absorb this one."""
    asked = spec.method.structure
    if asked is not None and asked not in structures_of(absorbed):
        raise InvalidInput(
            f"{model_type} has a norm between its MLP and the stream, so only a diagonal map can be folded",
            field="method.structure",
            value=asked,
        )


def check_rank(*, tokens: int, width: int) -> None:
    """A full map of `width` x `width` needs at least `width` tokens. Raises `CalibrationTooSmall`."""
    if tokens < width:
        raise CalibrationTooSmall(
            f"{tokens:,} calibration tokens are left for the fit; a model of width {width:,} needs at least "
            f"{width:,}, and about fifty times as many for a good map: ask for more samples or a greater max_length",
            field="calibration.samples",
            value=tokens,
        )


Allows = Callable[[Sequence[int]], bool]
"""Whether these blocks may be removed together."""


def keep_pattern(
    spec: CompressionSpec, config: Config, layout: Layout, *, first: int = 0
) -> tuple[CompressionSpec, Allows]:
    """Which blocks of the model of `config` may go together, and `spec` with a method that keeps to it.

    The `first` ones stay, and those that `must_stay`; with `compute.pattern_safe`, and in families that compute the
    kind of a block from its index, the blocks that stay must keep their pattern. Raises `InvalidInput` where the blocks
    that the request names break it, where the model's own lists follow none, and for a method that could not keep it.
    """

    def works(removed: Sequence[int]) -> bool:
        return must_stay(config, layout=layout, removed=removed, first=first) is None

    if spec.drop is not None and (reason := must_stay(config, layout=layout, removed=spec.drop, first=first)):
        raise InvalidInput(reason, field="drop", value=list(spec.drop))
    forced = bool(layout.computed_lists)
    if not forced and (not spec.compute.pattern_safe or not has_pattern(config, layout=layout)):
        return spec, works

    def allows(removed: Sequence[int]) -> bool:
        return works(removed) and keeps_pattern(config, layout=layout, removed=removed)

    if lists := irregular_lists(config, layout=layout):
        raise InvalidInput(
            f"the kinds of this model's blocks ({', '.join(lists)}) follow no step, so no removal can keep one; leave "
            "out pattern_safe",
            field="compute.pattern_safe",
            value=True,
        )
    if spec.drop is None:
        return with_pattern_kept(spec), allows
    if not allows(spec.drop):
        raise InvalidInput(
            f"without blocks {block_ranges(spec.drop)} the kinds of the others follow their step no more; name as many "
            f"neighbours as the pattern is long{'' if forced else ', or leave out compute.pattern_safe'}",
            field="drop",
            value=list(spec.drop),
        )
    return spec, allows


def with_pattern_kept(spec: CompressionSpec) -> CompressionSpec:
    """The same with the method that is named, or the default one, if it chooses one window: some keep a pattern.

    Raises `InvalidInput` for a choice of blocks here and there.
    """
    method = spec.method
    for name in method.possible:
        if _chooses_a_window(method, name):
            return spec.model_copy(update={"method": method.model_copy(update={"name": name})})
    windows = [str(name) for name in Method if TRAITS[name].chooses_a_window and name is not Method.REFIT]
    raise InvalidInput(
        f"a pattern of blocks needs a choice of one window: {', '.join(windows)}, or refit with selection window, "
        "without groups and not as published",
        field="method.name",
        value=method.name,
    )


def _chooses_a_window(method: MethodSpec, name: Method) -> bool:
    here_and_there = name is Method.REFIT and method.selection is not Selection.WINDOW
    return TRAITS[name].chooses_a_window and not here_and_there and method.groups == 1 and not method.as_published


def check_removal(spec: CompressionSpec, outline: ModelOutline) -> int:
    """How many blocks `spec` removes from this model, at most.

    Raises `InvalidInput` for blocks or groups it lacks, and for sequences that are longer than its table of positions.
    """
    check_length(spec.calibration.max_length, outline.longest)
    return depths_of(spec, outline)[-1]


def check_length(length: int | None, longest: int | None) -> None:
    """Raise `InvalidInput` for sequences of `length` tokens where the table of positions ends at `longest`."""
    if length is not None and longest is not None and length > longest:
        raise InvalidInput(
            f"the model has {longest:,} positions, and sequences of {length:,} tokens are asked for; set "
            "calibration.max_length to fewer",
            field="calibration.max_length",
            value=length,
        )


def depths_of(spec: CompressionSpec, outline: ModelOutline) -> list[int]:
    """The numbers of blocks that `spec` may remove from this model, in order. Raises as `check_removal` does.

    Several where the deepest cut that passes the gate is asked for, else one.
    """
    check_structure(spec, outline.layout.structure, model_type=outline.layout.model_type)
    blocks, groups = outline.blocks, spec.method.groups
    if blocks < 2:
        raise UnsupportedFamily("the model has 1 block; at least 2 are needed, since block 0 stays", value=blocks)
    if spec.greatest_ratio is not None:
        remove = blocks_to_remove(spec.greatest_ratio, blocks)
        depths = range(1, remove + 1) if spec.searches else [remove]
        # each group removes a block and follows a kept one
        possible = [depth for depth in depths if groups <= min(depth, blocks - depth)]
        if possible:
            return possible
        most = max(min(depth, blocks - depth) for depth in depths)
        raise InvalidInput(
            f"{remove} of {blocks} blocks can be removed in at most {counted(most, 'groups')}, each after a block that "
            f"is kept; got {groups}",
            field="method.groups",
            value=groups,
        )
    assert spec.drop is not None, "the specification was checked"
    beyond = [block for block in spec.drop if block >= blocks]
    if beyond:
        raise InvalidInput(
            f"the model has blocks 0 to {blocks - 1}; there is no block {beyond[0]}",
            field="drop",
            value=list(spec.drop),
        )
    return [len(spec.drop)]


def blocks_to_remove(ratio: float, blocks: int) -> int:
    """How many of `blocks` a ratio removes: rounded half up, at least 1, at most all but one.

    >>> blocks_to_remove(0.25, 30)
    8
    """
    return min(max(math.floor(ratio * blocks + 0.5), 1), blocks - 1)


def ratio_of(removed: int, blocks: int) -> float:
    """A short ratio by which exactly `removed` of `blocks` blocks go.

    >>> ratio_of(4, 30), blocks_to_remove(ratio_of(4, 30), 30)
    (0.1333, 4)
    """
    return round(removed / blocks, 4)


def block_ranges(blocks: Iterable[int]) -> str:
    """The blocks as a short list of ranges.

    >>> block_ranges([3, 12, 13, 14, 20])
    '3, 12-14, 20'
    """
    return ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in runs_of(blocks))


def read_blocks(text: str) -> list[object]:
    """The blocks of such a list. What is no number and no range stays text, and so do ranges of too many blocks.

    >>> read_blocks("3, 12-14"), read_blocks("some, 9-3")
    ([3, 12, 13, 14], ['some', '9-3'])
    """
    found: list[object] = []
    for part in filter(None, map(str.strip, text.split(","))):
        named = re.fullmatch(r"(\d{1,5})(?:\s*-\s*(\d{1,5}))?", part)
        blocks = range(int(named[1]), int(named[2] or named[1]) + 1) if named is not None else range(0)
        found += blocks if 0 < len(blocks) <= MOST_NAMED_BLOCKS - len(found) else [part]
    return found


def runs_of(blocks: Iterable[int]) -> list[tuple[int, int]]:
    """The first and the last block of each run of neighbours.

    >>> runs_of([3, 12, 13])
    [(3, 3), (12, 13)]
    """
    runs: list[tuple[int, int]] = []
    for block in sorted(blocks):
        if runs and block == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], block)
        else:
            runs.append((block, block))
    return runs
