"""The stream after the last block of a dense model, kept for each batch of a text: with it the logits need no block.

So a later trial or run compares the distributions of another pruned model with those of the same dense one, to the last
bit, and runs nothing of the dense model but its final norm and head.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import PreTrainedModel

from replaceme_core.engine.activations.content_key import tensor_digest
from replaceme_core.engine.activations.verified_file import Contents
from replaceme_core.engine.evaluation.dense_results import DenseResults
from replaceme_core.engine.model.block_runner import BlockRunner
from replaceme_core.families.resolve import resolve

NAME = "text"


@dataclass(kw_only=True)
class LastStream:
    """Of one model over `batches` of token ids (sequences, length). `stored` are the streams of an earlier pass.

    `made` are those of this pass; `None` where they are not kept.
    """

    results: DenseResults
    runner: BlockRunner
    batches: Sequence[torch.Tensor]
    stored: Sequence[torch.Tensor] | None
    made: list[torch.Tensor] | None = field(default=None)

    @classmethod
    def of(cls, model: PreTrainedModel, batches: Sequence[torch.Tensor], results: DenseResults) -> "LastStream | None":
        """`None` where nothing is kept."""
        tokens = sum(batch.numel() for batch in batches)
        size = tokens * model.config.hidden_size * model.dtype.itemsize
        if not results.has_room(size):
            return None
        found = results.find(NAME, _asked(batches))
        stored = None if found is None else [found.tensors[str(number)] for number in range(len(batches))]
        runner = BlockRunner(resolved=resolve(model))
        return cls(results=results, runner=runner, batches=batches, stored=stored, made=[] if stored is None else None)

    def logits(self, number: int, tokens: torch.Tensor) -> torch.Tensor:
        """The logits (sequences, length, vocabulary) of a batch from its stored stream, without any block."""
        assert self.stored is not None
        return self.runner.leave(self.stored[number].to(tokens.device), tokens)

    def run(self, tokens: torch.Tensor) -> torch.Tensor:
        """The logits of a batch from the whole model; the stream is kept on the way.

        Where the first one does not give the same logits again, to the bit, none is kept.
        """
        model = self.runner.resolved.model
        if self.made is None:
            return _logits(model, tokens)
        seen: list[torch.Tensor] = []

        def note(module: nn.Module, given: object, output: object) -> None:
            stream = output[0] if isinstance(output, tuple) else output
            assert isinstance(stream, torch.Tensor)
            seen.append(stream.detach().to("cpu", copy=True))

        handle = self.runner.blocks[-1].register_forward_hook(note)
        try:
            logits = _logits(model, tokens)
        finally:
            handle.remove()
        (stream,) = seen
        if not self.made and not torch.equal(self.runner.leave(stream.to(tokens.device), tokens), logits):
            self.made = None
        else:
            self.made.append(stream)
        return logits

    def keep(self) -> None:
        """Once all batches have run: keep what is new."""
        if self.made is not None and len(self.made) == len(self.batches):
            tensors = {str(number): stream for number, stream in enumerate(self.made)}
            self.results.keep(NAME, _asked(self.batches), Contents(record={}, tensors=tensors))


def _asked(batches: Sequence[torch.Tensor]) -> dict[str, object]:
    return {"tokens": [tensor_digest(batch) for batch in batches]}


def _logits(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=tokens, use_cache=False).logits
    return logits
