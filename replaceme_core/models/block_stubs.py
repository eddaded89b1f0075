"""Modules that stand in for the blocks while a model's own `forward` prepares their arguments, or ends after them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from replaceme_core.models.hooks import Stop


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What a model passes to a block beside the stream."""

    args: tuple[object, ...] = ()
    kwargs: Mapping[str, object] = field(default_factory=dict)


class Recorder(nn.Module):
    """Stands in for one block: keeps what the model passes to it, returns the stream unchanged."""

    def __init__(self, block: nn.Module, *, last: bool, as_tuple: bool) -> None:
        super().__init__()
        self.recorded = Arguments()
        self.stream: torch.Tensor | None = None
        self._last = last
        self._as_tuple = as_tuple
        # Some forwards read plain attributes of a block, such as attention_type, before they call it.
        for name, value in vars(block).items():
            if not name.startswith("_") and name != "training":
                setattr(self, name, value)

    def forward(self, stream: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor | tuple[torch.Tensor]:
        self.stream, self.recorded = stream, Arguments(args=args, kwargs=kwargs)
        if self._last:
            raise Stop
        return (stream,) if self._as_tuple else stream


class Injector(nn.Module):
    """Stands in for all blocks: whatever comes in, `stream` goes out."""

    def __init__(self, stream: torch.Tensor, *, as_tuple: bool) -> None:
        super().__init__()
        self._stream = [stream]  # in a list: a tensor attribute of a module is fine, a parameter is not meant
        self._as_tuple = as_tuple

    def forward(self, _: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor | tuple[torch.Tensor]:
        return (self._stream[0],) if self._as_tuple else self._stream[0]
