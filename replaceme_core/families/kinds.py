"""Which blocks of a live model are of one kind, so that their parameters have the same meaning."""

from torch import nn


def kind(block: nn.Module) -> tuple[object, ...]:
    """A value that is equal for two blocks exactly if they compute the same function of stream and parameters.

    Made of the classes and names of their modules, the shapes of their parameters, and the plain attributes of their
    modules (whether attention is sliding, how many experts ...), apart from the slot in the KV cache.
    """
    modules = tuple((path, type(module).__name__, _plain(module)) for path, module in block.named_modules())
    return modules, tuple((name, tuple(parameter.shape)) for name, parameter in block.named_parameters())


def _plain(module: nn.Module) -> tuple[tuple[str, object], ...]:
    return tuple(
        (name, value)
        for name, value in sorted(vars(module).items())
        if isinstance(value, bool | int | float | str | None) and name not in ("layer_idx", "training")
    )
