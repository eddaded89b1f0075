"""Record or replace what a module of a live model reads or returns. Each is a context that leaves nothing attached."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn


class Stop(Exception):
    """Ends a forward pass early: the values that were wanted have been recorded."""


@dataclass(frozen=True, kw_only=True)
class Hook:
    """The output of `module`, or with `on_input` its first input; with `copy`, safe from later in-place changes."""

    module: nn.Module
    on_input: bool = False
    copy: bool = False


@contextmanager
def record_values(hook: Hook, *, stop: bool = False) -> Iterator[list[torch.Tensor]]:
    """Yields a list that collects the values of `hook` while the context is open.

    With `stop` the forward pass ends there, by the exception `Stop`.
    """
    seen: list[torch.Tensor] = []

    def collect(values: object) -> None:
        first = values[0] if isinstance(values, tuple) else values
        assert isinstance(first, torch.Tensor)
        seen.append(first.clone() if hook.copy else first)
        if stop:
            raise Stop

    def read(_module: nn.Module, inputs: tuple[object, ...], named: Mapping[str, object]) -> None:
        collect(inputs or next(iter(named.values())))

    if hook.on_input:
        handle = hook.module.register_forward_pre_hook(read, with_kwargs=True)
    else:
        handle = hook.module.register_forward_hook(lambda _module, _inputs, output: collect(output))
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def replace_output(module: nn.Module, output: torch.Tensor) -> Iterator[None]:
    """`module` computes its output, but returns `output` in the same shape."""
    handle = module.register_forward_hook(lambda _module, _inputs, own: output.reshape(own.shape))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def replace_forward(module: nn.Module, output: object) -> Iterator[None]:
    """`module` returns `output` and computes nothing."""
    own = vars(module).get("forward")  # set where an offloading library wraps the forward of the module
    vars(module)["forward"] = lambda *_args, **_kwargs: output
    try:
        yield
    finally:
        if own is None:
            del vars(module)["forward"]
        else:
            vars(module)["forward"] = own


@contextmanager
def scale_output(module: nn.Module, factor: float) -> Iterator[None]:
    """The output of `module` is multiplied by `factor`."""
    handle = module.register_forward_hook(lambda _module, _inputs, output: output * factor)
    try:
        yield
    finally:
        handle.remove()
