"""Run a model one block at a time on a residual stream that the caller holds.

The model's own `forward` still prepares masks and positions, and does what comes after the last block (final norm,
logits and their scaling): its list of blocks is replaced for the moment by stand-ins that record or inject.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import torch
from torch import nn

from replaceme_core.families.resolve import ResolvedModel, check_residual


class _Stop(Exception):
    """The last wanted block was reached; nothing after it is computed."""


class _Recorder(nn.Module):
    """Stands in for one block: keeps what the model passes to it, returns the stream unchanged."""

    def __init__(self, block: nn.Module, *, last: bool) -> None:
        super().__init__()
        self.recorded: dict[str, object] = {}
        self.stream: torch.Tensor | None = None
        self._last = last
        # Some forwards read plain attributes of a block, such as attention_type, before they call it.
        for name, value in vars(block).items():
            if not name.startswith("_") and name != "training":
                setattr(self, name, value)

    def forward(self, stream: torch.Tensor, **kwargs: object) -> torch.Tensor:
        self.stream, self.recorded = stream, kwargs
        if self._last:
            raise _Stop
        return stream


class _Injector(nn.Module):
    """Stands in for all blocks: whatever comes in, `stream` goes out."""

    def __init__(self, stream: torch.Tensor) -> None:
        super().__init__()
        self._stream = [stream]  # in a list: a tensor attribute of a module is fine, a parameter is not meant

    def forward(self, _: torch.Tensor, **kwargs: object) -> torch.Tensor:
        return self._stream[0]


@contextmanager
def tap(module: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Collect the outputs of `module` while the context is open; the hook is gone afterwards."""
    seen: list[torch.Tensor] = []
    handle = module.register_forward_hook(
        lambda _module, _inputs, output: seen.append(output[0] if isinstance(output, tuple) else output)
    )
    try:
        yield seen
    finally:
        handle.remove()


@dataclass(kw_only=True)
class BlockwiseModel:
    """`enter` -> `run` for each block -> `leave`. Streams are (batch, positions, d)."""

    resolved: ResolvedModel
    blocks: nn.ModuleList = field(init=False)
    _arguments: dict[tuple[int, ...], list[dict[str, object]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.blocks = self.resolved.blocks

    @contextmanager
    def _stand_ins(self, modules: list[nn.Module]) -> Iterator[None]:
        self.resolved.replace_blocks(nn.ModuleList(modules))
        try:
            yield
        finally:
            self.resolved.replace_blocks(self.blocks)

    def enter(self, tokens: torch.Tensor) -> torch.Tensor:
        """The stream before block 0 for `tokens` (batch, positions). Costs no block."""
        last = len(self.blocks) - 1
        recorders = [_Recorder(block, last=index == last) for index, block in enumerate(self.blocks)]
        with self._stand_ins(list(recorders)), suppress(_Stop):
            self.resolved.model(input_ids=tokens, use_cache=False)
        # Masks and positions depend on the shape alone: sequences are packed full, nothing is padded.
        self._arguments[tuple(tokens.shape)] = [recorder.recorded for recorder in recorders]
        stream = recorders[0].stream
        assert stream is not None, "the model did not call its first block"
        return stream

    def run(self, block: int, stream: torch.Tensor) -> torch.Tensor:
        """The stream after `block`."""
        output = self.blocks[block](stream, **self._arguments[tuple(stream.shape[:2])][block])
        after: torch.Tensor = output[0] if isinstance(output, tuple) else output
        return after

    def run_tapped(self, block: int, stream: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The stream after `block`, and what its MLP wrote to it."""
        with tap(self.resolved.mlp_write(self.blocks[block])) as seen:
            after = self.run(block, stream)
        return after, seen[0].reshape(after.shape)

    def leave(self, stream: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """The logits (batch, positions, vocabulary) for the stream after the last block."""
        with self._stand_ins([_Injector(stream)]):
            logits = self.resolved.model(input_ids=tokens, use_cache=False).logits
        assert isinstance(logits, torch.Tensor)
        return logits

    def prove(self, tokens: torch.Tensor) -> float:
        """Run the residual check on every block; returns the largest relative error. Raises `NumericalFailure`."""
        stream, worst = self.enter(tokens), 0.0
        for index, block in enumerate(self.blocks):
            with (
                tap(self.resolved.attention_write(block)) as attention,
                tap(self.resolved.mlp_write(block)) as mlp,
            ):
                after = self.run(index, stream)
            width = after.shape[-1]
            error = check_residual(
                block=index,
                before=stream.reshape(-1, width),
                after=after.reshape(-1, width),
                attention=attention[0].reshape(-1, attention[0].shape[-1]),
                mlp=mlp[0].reshape(-1, mlp[0].shape[-1]),
            )
            worst, stream = max(worst, error), after
        return worst
