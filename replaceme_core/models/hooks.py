"""Hear what a module of a live model is given or gives, or say it in its place; nothing stays attached."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn


class Stop(Exception):
    """What was wanted is there; nothing after it is computed."""


@dataclass(frozen=True, kw_only=True)
class Hook:
    """What `module` gives, or with `reads` what it is given first; with `copy` it stays so if somebody adds into it."""

    module: nn.Module
    reads: bool = False
    copy: bool = False


@contextmanager
def recorded_by(hook: Hook, *, stop: bool = False) -> Iterator[list[torch.Tensor]]:
    """Collect what `tap` names while the context is open; the hook is gone afterwards.

    With `stop` nothing is run after it: whatever runs the module ends in `Stop`.
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

    if hook.reads:
        handle = hook.module.register_forward_pre_hook(read, with_kwargs=True)
    else:
        handle = hook.module.register_forward_hook(lambda _module, _inputs, output: collect(output))
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def output_replaced(module: nn.Module, output: torch.Tensor) -> Iterator[None]:
    """Whatever `module` computes, it gives `output`, in the shape of its own."""
    handle = module.register_forward_hook(lambda _module, _inputs, own: output.reshape(own.shape))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def forward_replaced(module: nn.Module, output: object) -> Iterator[None]:
    """`module` gives `output` and computes nothing."""
    own = vars(module).get("forward")  # there is one where weights are moved in before the module's own
    vars(module)["forward"] = lambda *_args, **_kwargs: output
    try:
        yield
    finally:
        if own is None:
            del vars(module)["forward"]
        else:
            vars(module)["forward"] = own


@contextmanager
def multiplied(module: nn.Module, factor: float) -> Iterator[None]:
    """What `module` gives comes times `factor`."""
    handle = module.register_forward_hook(lambda _module, _inputs, output: output * factor)
    try:
        yield
    finally:
        handle.remove()
