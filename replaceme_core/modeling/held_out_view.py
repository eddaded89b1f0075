"""Tensors of the held-out batches that are read when they are asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import overload

import torch


@dataclass(frozen=True, kw_only=True)
class HeldOutView(Sequence[torch.Tensor]):
    """`read` gives the one of a batch; `numbers` are those of the held-out batches."""

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
