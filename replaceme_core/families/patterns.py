"""Update the fields of a config that describe single blocks. Knows the standard library only."""

from collections.abc import Sequence

from replaceme_core.families.layout import Layout


def follow_blocks(config: object, *, layout: Layout, kept: Sequence[int], blocks: int) -> None:
    """Change the `config` of a model with `blocks` blocks in place, to describe those `kept`, each in its kind.

    Patterns computed from the index come first: they are turned into lists, else a kept block would change its kind.
    """
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
