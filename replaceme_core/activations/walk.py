"""The dense model's stream, block by block, for something that follows it."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from replaceme_core.activations.capture import Activations
from replaceme_core.models.block_runner import BlockRunner


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Of a batch: the dense stream before a block, the one between its attention and its MLP, and the one that the
    pruned model's next block should read; all (sequences, positions, d).
    """

    before: Callable[[int], torch.Tensor]
    between: Callable[[int], torch.Tensor]
    end: Callable[[int], torch.Tensor]


@dataclass(kw_only=True)
class DenseWalk:
    """Stands before `block`. Reads the streams that were kept; where none were, it keeps those of one block."""

    block_runner: BlockRunner
    activations: Activations
    block: int
    _streams: list[torch.Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.activations.complete:
            return
        for batch in range(len(self.activations.batches)):
            stream = self.block_runner.enter(self.activations.tokens(batch))
            self._streams.append(self._run(stream, 0, self.block))

    def stream(self, batch: int) -> torch.Tensor:
        """Before the block (sequences, positions, d)."""
        return self.activations.before(self.block, batch) if self.activations.complete else self._streams[batch]

    def step(self, until: int) -> Targets:
        """On to the block `until`. To be called before the weights of the present block change."""
        block, self.block = self.block, until
        if self.activations.complete:
            return Targets(
                before=lambda batch: self.activations.before(block, batch),
                between=lambda batch: self.activations.after(block, batch) - self.activations.write(block, batch),
                end=lambda batch: self.activations.before(until, batch),
            )
        before, between = list(self._streams), list[torch.Tensor]()
        for batch, stream in enumerate(self._streams):
            after, write = self.block_runner.run_with_mlp_write(block, stream)
            between.append(after - write)
            self.activations.dense_block_runs += 1
            self._streams[batch] = self._run(after, block + 1, until)
        end = list(self._streams)
        return Targets(before=before.__getitem__, between=between.__getitem__, end=end.__getitem__)

    def _run(self, stream: torch.Tensor, since: int, until: int) -> torch.Tensor:
        for block in range(since, until):
            stream = self.block_runner.run(block, stream)
            self.activations.dense_block_runs += 1
        return stream
