"""The source model of several results: it runs once on each text, however many results it is compared with.

What comes after its last block, the final norm and the head, runs again for each result: logits would take more room
than all else, and are the same to the bit.
"""

from dataclasses import dataclass, field

import torch

from replaceme_core.activations.tensor_store import TensorStore
from replaceme_core.evaluation.measure import Subject
from replaceme_core.families.resolve import resolve
from replaceme_core.models.block_runner import BlockRunner
from replaceme_core.models.hooks import Hook, record_values


@dataclass(kw_only=True)
class MeasuredOnce(Subject):
    """On one text. `store` gets under `key`, batch by batch, the stream after the last block (sequences, length, d).

    `rewind` begins the next comparison.
    """

    store: TensorStore
    key: str
    _next: int = 0
    _runner: BlockRunner = field(init=False)

    def __post_init__(self) -> None:
        self._runner = BlockRunner(resolved=resolve(self.model))

    def rewind(self) -> None:
        self._next = 0

    def warm_up(self, batch: torch.Tensor) -> None:
        if not self._known:
            super().warm_up(batch)

    def run(self, batch: torch.Tensor) -> torch.Tensor:
        """As `Subject.run`; a batch that was run before is not counted again."""
        number, self._next = self._next, self._next + 1
        if number < self._known:
            stream = self.store.get(self.key, number).to(batch.device)
            return self._runner.leave(stream, batch)[:, :-1].flatten(0, 1)
        with record_values(Hook(module=self._runner.blocks[-1])) as seen:
            predictions = super().run(batch)
        self.store.put(self.key, seen[-1])
        return predictions

    @property
    def _known(self) -> int:
        return self.store.count(self.key)
