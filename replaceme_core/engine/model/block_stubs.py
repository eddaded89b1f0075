"""Stubs that take the place of blocks while a model's own `forward` prepares their arguments, or ends after them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from replaceme_core.engine.model.hooks import Stop


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What a model passes to a block in addition to the stream: masks, positions, rotary embeddings ..."""

    args: tuple[object, ...] = ()
    kwargs: Mapping[str, object] = field(default_factory=dict)


class RecordingStub(nn.Module):
    """In place of one block: records what the model passes to it, and returns the stream unchanged."""

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


class OutputStub(nn.Module):
    """In place of all blocks: returns `stream`, whatever its input."""

    def __init__(self, stream: torch.Tensor, *, as_tuple: bool) -> None:
        super().__init__()
        self._stream = [stream]  # in a list, so that `nn.Module` does not register it
        self._as_tuple = as_tuple

    def forward(self, _: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor | tuple[torch.Tensor]:
        return (self._stream[0],) if self._as_tuple else self._stream[0]
