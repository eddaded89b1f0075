"""The kinds of single blocks in a config: kept up to date, and compared with what others compute from the index.

Knows the standard library only.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import Protocol, Self

from replaceme_core.families.layout import Layout


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
