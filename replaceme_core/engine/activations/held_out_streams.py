"""Streams on the held-out batches, read on access."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import overload

import torch

from replaceme_core.engine.activations.tensor_store import TensorStore, stream_key


@dataclass(frozen=True, kw_only=True)
class HeldOutStreams:
    """The stream before each anchor block on the held-out tokens, batch by batch: where a replay starts."""

    tokens: Sequence[torch.Tensor]
    before: Mapping[int, Sequence[torch.Tensor]]
    last: Sequence[torch.Tensor]
    """After the last block of the dense model; empty if the pass stopped before it."""
    at_once: int = 1
    """Sequences that may be run together."""

    def together(self, first: int) -> range:
        """The batches from `first` on that are of one shape, and together no more sequences than `at_once`."""
        shape = self.tokens[first].shape
        most = first + max(1, self.at_once // shape[0])
        others = (number for number, ids in enumerate(self.tokens[first:most], start=first) if ids.shape != shape)
        return range(first, next(others, min(most, len(self.tokens))))


@dataclass(frozen=True, kw_only=True)
class HeldOutView(Sequence[torch.Tensor]):
    """The tensors that `read` returns for the held-out batches `numbers`."""

    read: Callable[[int], torch.Tensor]
    numbers: range

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> torch.Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> list[torch.Tensor]: ...
    def __getitem__(self, index: int | slice) -> torch.Tensor | list[torch.Tensor]:
        numbers = self.numbers[index]
        return [self.read(number) for number in numbers] if isinstance(numbers, range) else self.read(numbers)


def stored_held_out(
    streams: TensorStore, *, tokens: Sequence[torch.Tensor], blocks: int, at_once: int = 1
) -> HeldOutStreams:
    """The streams before those of the `blocks` that have a list in `streams`, with one tensor for each batch."""
    views = {block: _view(streams, block, tokens) for block in range(blocks + 1) if streams.count(stream_key(block))}
    return HeldOutStreams(tokens=tokens, last=views.pop(blocks, ()), before=views, at_once=at_once)


def _view(streams: TensorStore, block: int, tokens: Sequence[torch.Tensor]) -> HeldOutView:
    def read(number: int) -> torch.Tensor:
        return streams.get(stream_key(block), number).to(tokens[number].device)

    return HeldOutView(read=read, numbers=range(len(tokens)))
