"""Which blocks may go together where a request asks to keep the pattern of a model's kinds of blocks. No torch."""

from collections.abc import Callable, Sequence

from replaceme_core.errors import InvalidInput
from replaceme_core.families.layout import Layout
from replaceme_core.families.patterns import Config, has_pattern, irregular_lists, keeps_pattern
from replaceme_core.request.defaults import DEFAULT_METHODS
from replaceme_core.request.method_spec import MethodSpec, Selection
from replaceme_core.request.method_traits import TRAITS, Method
from replaceme_core.request.removal import block_ranges
from replaceme_core.request.spec import CompressionSpec

Allows = Callable[[Sequence[int]], bool]
"""Whether these blocks may be removed together."""


def pattern_rule(spec: CompressionSpec, config: Config, layout: Layout) -> Allows | None:
    """What `compute.pattern_safe` allows in the model of `config`; `None`: everything.

    Raises `InvalidInput` where the blocks that the request names break the pattern, where the model's own lists follow
    none, and for a method that could not keep it.
    """
    if not spec.compute.pattern_safe or not has_pattern(config, layout=layout):
        return None
    if lists := irregular_lists(config, layout=layout):
        raise InvalidInput(
            f"the kinds of this model's blocks ({', '.join(lists)}) follow no step, so no removal can keep one; leave "
            "out pattern_safe",
            field="compute.pattern_safe",
            value=True,
        )
    if spec.drop is None:
        keeping_method(spec.method)
    elif not keeps_pattern(config, layout=layout, removed=spec.drop):
        raise InvalidInput(
            f"without blocks {block_ranges(spec.drop)} the kinds of the others follow their step no more; name as many "
            "neighbours as the pattern is long, or leave out compute.pattern_safe",
            field="drop",
            value=list(spec.drop),
        )
    return lambda removed: keeps_pattern(config, layout=layout, removed=removed)


def with_pattern_kept(spec: CompressionSpec) -> CompressionSpec:
    """The same with a method that can keep a pattern; where blocks are named, any method can. Raises as below."""
    if spec.drop is not None:
        return spec
    method = spec.method.model_copy(update={"name": keeping_method(spec.method)})
    return spec.model_copy(update={"method": method})


def keeping_method(method: MethodSpec) -> Method:
    """The method that is named, or the default one that chooses one window, of which some keep a pattern.

    Raises `InvalidInput` for a choice of blocks here and there.
    """
    candidates = DEFAULT_METHODS if method.name is None else (method.name,)
    for name in candidates:
        if name in method.possible and _chooses_a_window(method, name):
            return name
    windows = [str(name) for name in Method if TRAITS[name].chooses_a_window and name is not Method.REFIT]
    raise InvalidInput(
        f"compute.pattern_safe needs a choice of one window: {', '.join(windows)}, or refit with selection window, "
        "without groups and not as published",
        field="method.name",
        value=method.name,
    )


def _chooses_a_window(method: MethodSpec, name: Method) -> bool:
    here_and_there = name is Method.REFIT and method.selection is not Selection.WINDOW
    return TRAITS[name].chooses_a_window and not here_and_there and method.groups == 1 and not method.as_published
