"""Run a model one block at a time on a residual stream that the caller holds.

The model's own `forward` still prepares masks and positions, and does what comes after the last block (final norm,
logits and their scaling): its list of blocks is replaced for the moment by stand-ins that record or inject.
"""

import itertools
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutput

from replaceme_core.families.resolve import ResolvedModel, check_residual
from replaceme_core.models.allocator import LARGEST_REUSED, release_memory
from replaceme_core.models.block_stubs import Arguments, Injector, Recorder
from replaceme_core.models.hooks import Hook, Stop, forward_replaced, output_replaced, recorded_by
from replaceme_core.models.lazy_model import loaded, reader_of
from replaceme_core.models.memory import is_out_of_memory

logger = logging.getLogger(__name__)

MLP_WIDTH = 4
"""Times that of the stream."""


@dataclass(kw_only=True)
class BlockRunner:
    """`enter` -> `run` for each block -> `leave`. Streams are (batch, positions, d)."""

    resolved: ResolvedModel
    blocks: nn.ModuleList = field(init=False)
    at_once: int | None = None
    """Sequences that go through a block together, once memory has run out `halvings` times."""
    halvings: int = 0
    _arguments: dict[tuple[int, ...], list[Arguments]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.blocks = self.resolved.blocks

    @property
    def low_memory(self) -> bool:
        """Whether blocks are read one at a time, since not even these fit into memory."""
        return reader_of(self.blocks[0]) is not None

    def trim_memory(self) -> None:
        """Where memory is scarce, what lies free goes back at once; elsewhere it is used again."""
        if self.low_memory:
            release_memory()

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
        as_tuple = self.resolved.layout.block_returns_tuple
        recorders = [Recorder(block, last=index == last, as_tuple=as_tuple) for index, block in enumerate(self.blocks)]
        with self._stand_ins(list(recorders)), suppress(Stop):
            self._model(tokens)
        # Masks and positions depend on the shape alone: sequences are packed full, nothing is padded.
        self._arguments[tuple(tokens.shape)] = [recorder.recorded for recorder in recorders]
        stream = recorders[0].stream
        assert stream is not None, "the model did not call its first block"
        return stream

    def loaded(self, block: int) -> nn.Module:
        """The block with its weights in memory, until another block is run or asked for."""
        return loaded(self.blocks[block])

    def run(self, block: int, stream: torch.Tensor, *, written: torch.Tensor | None = None) -> torch.Tensor:
        """The stream after `block`.

        Here and below, `written` is what the attention writes, as `run_attention` gives it: it is not computed again.
        """
        return self._run(block, stream, hooks=(), written=written)[0]

    def _run(
        self, block: int, stream: torch.Tensor, *, hooks: Sequence[Hook], written: torch.Tensor | None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The stream after `block`, and what `taps` heard."""
        after, seen = self._in_parts(block, stream, hooks=hooks, written=written, stop=False)
        assert after is not None, "the block was not run to its end"
        return after, seen

    def _in_parts(
        self, block: int, stream: torch.Tensor, *, hooks: Sequence[Hook], written: torch.Tensor | None, stop: bool
    ) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        """A batch goes through in parts (`fitting`). Where memory runs out these are halved, from then on for every
        block, down to one sequence.

        With `stop`, nothing after the last of `taps` is run, and there is no stream after the block.
        """
        while True:
            at_once = min(len(stream), self.at_once or fitting(stream, low_memory=self.low_memory))
            try:
                parts = [
                    self._run_at_once(block, part, hooks=hooks, written=given, stop=stop)
                    for part, given in zip(
                        stream.split(at_once),
                        itertools.repeat(None) if written is None else written.split(at_once),
                        strict=False,
                    )
                ]
                break
            except (MemoryError, RuntimeError) as error:
                if at_once == 1 or not is_out_of_memory(error):
                    raise
            # after the handler: the error holds what the failed attempt had in memory
            self.at_once, self.halvings = (at_once + 1) // 2, self.halvings + 1
            logger.warning("memory ran out in block %d; from now on %d sequences at once", block, self.at_once)
            if stream.device.type != "cpu":
                torch.get_device_module(stream.device).empty_cache()
        if len(parts) == 1:
            return parts[0]
        after = None if stop else torch.cat([part for part, _ in parts if part is not None])
        return after, [torch.cat([seen[index] for _, seen in parts]) for index in range(len(hooks))]

    def _run_at_once(
        self, block: int, stream: torch.Tensor, *, hooks: Sequence[Hook], written: torch.Tensor | None, stop: bool
    ) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        arguments, after = self._arguments_for(stream)[block], None
        with ExitStack() as stack:
            if written is not None:
                module = self.blocks[block]
                # A norm between attention and stream would change it. An attention returns its weights as well.
                stack.enter_context(output_replaced(self.resolved.attention_write(module), written))
                stack.enter_context(forward_replaced(self.resolved.attention(module), (written, None)))
            seen = [stack.enter_context(recorded_by(hook, stop=stop and hook is hooks[-1])) for hook in hooks]
            with suppress(Stop):
                output = self.blocks[block](stream, *arguments.args, **arguments.kwargs)
                after = output[0] if isinstance(output, tuple) else output
        return after, [each[0] for each in seen]

    def _arguments_for(self, stream: torch.Tensor) -> list[Arguments]:
        shape = tuple(stream.shape[:2])
        if shape not in self._arguments:
            self.enter(torch.zeros(shape, dtype=torch.long, device=stream.device))
        return self._arguments[shape]

    def run_with_mlp_write(
        self, block: int, stream: torch.Tensor, *, written: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The stream after `block`, and what its MLP wrote to it; both (batch, positions, d)."""
        hooks = [self._write(self.resolved.mlp_write(self.blocks[block]))]
        after, (write,) = self._run(block, stream, hooks=hooks, written=written)
        return after, self._scaled(write).reshape(after.shape)

    def run_attention(self, block: int, stream: torch.Tensor) -> torch.Tensor:
        """What the attention of `block` writes (batch, positions, d), not scaled; nothing after it is run."""
        hooks = [self._write(self.resolved.attention_write(self.blocks[block]))]
        _, (written,) = self._in_parts(block, stream, hooks=hooks, written=None, stop=True)
        return written.reshape(stream.shape)

    def project(self, block: int, projection: nn.Module, inputs: torch.Tensor, *, like: torch.Tensor) -> torch.Tensor:
        """What `projection` of `block` makes of `inputs` (tokens, f), in the shape of the stream `like`."""
        self.loaded(block)
        output: torch.Tensor = projection(inputs)
        return output.reshape(like.shape)

    def run_with_projection_input(
        self,
        block: int,
        stream: torch.Tensor,
        projection: nn.Module,
        *,
        attention: bool,
        written: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What `projection` of `block` reads (tokens, f), and the stream once its output is added.

        With `attention` it is that of the attention: the stream (batch, positions, d) is that between attention and
        MLP, and nothing after the attention is run.
        """
        inputs = Hook(module=projection, reads=True)
        if attention:
            write = self._write(self.resolved.attention_write(self.blocks[block]))
            _, (read, output) = self._in_parts(block, stream, hooks=[inputs, write], written=None, stop=True)
            return _flat(read), stream + self._scaled(output).reshape(stream.shape)
        after, (read,) = self._run(block, stream, hooks=[inputs], written=written)
        return _flat(read), after

    def run_with_norm(
        self,
        block: int,
        stream: torch.Tensor,
        projection: nn.Module,
        norm: nn.Module,
        *,
        attention: bool,
        written: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """What `projection` reads (tokens, f), what it gives, what `norm` makes of that (tokens, d), and the stream.

        The stream is as in `run_projected`.
        """
        hooks = [Hook(module=projection, reads=True), Hook(module=projection), self._write(norm)]
        reached, (read, given, normed) = self._in_parts(block, stream, hooks=hooks, written=written, stop=attention)
        scaled = self._scaled(normed)
        if reached is None:
            reached = stream + scaled.reshape(stream.shape)
        return _flat(read), _flat(given), _flat(scaled), reached

    def input_of(
        self, block: int, stream: torch.Tensor, reader: nn.Module, *, written: torch.Tensor | None = None
    ) -> torch.Tensor:
        """What `reader`, a module of `block`, is given (tokens, f); nothing after it is run."""
        hooks = [Hook(module=reader, reads=True)]
        return _flat(self._in_parts(block, stream, hooks=hooks, written=written, stop=True)[1][0])

    def run_with_writes(self, block: int, stream: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The stream after `block`, and what its attention and its MLP wrote to it; the writes as (tokens, width)."""
        modules = [write(self.blocks[block]) for write in (self.resolved.attention_write, self.resolved.mlp_write)]
        after, seen = self._run(block, stream, hooks=[self._write(module) for module in modules], written=None)
        return after, _flat(self._scaled(seen[0])), _flat(self._scaled(seen[1]))

    def _write(self, module: nn.Module) -> Hook:
        return Hook(module=module, copy=self.resolved.layout.added_in_place)

    def _scaled(self, output: torch.Tensor) -> torch.Tensor:
        """A tapped output as it enters the stream."""
        scale = self.resolved.write_scale
        return output if scale == 1 else output * scale

    def leave(self, stream: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """The logits (batch, positions, vocabulary) for the stream after the last block."""
        with self._stand_ins([Injector(stream, as_tuple=self.resolved.layout.block_returns_tuple)]):
            logits = self._model(tokens).logits
        assert isinstance(logits, torch.Tensor)
        return logits

    def _model(self, tokens: torch.Tensor) -> CausalLMOutput:
        off = dict.fromkeys(self.resolved.layout.switched_off, False)
        output: CausalLMOutput = self.resolved.model(input_ids=tokens, use_cache=False, **off)
        return output

    def prove(self, tokens: torch.Tensor) -> float:
        """Run the residual check on every block; returns the largest relative error. Raises `NumericalFailure`."""
        stream, worst = self.enter(tokens), 0.0
        for index in range(len(self.blocks)):
            after, attention, mlp = self.run_with_writes(index, stream)
            width = after.shape[-1]
            error = check_residual(
                block=index,
                before=stream.reshape(-1, width),
                after=after.reshape(-1, width),
                attention=attention,
                mlp=mlp,
            )
            worst, stream = max(worst, error), after
        return worst


def fitting(stream: torch.Tensor, *, low_memory: bool) -> int:
    """How many sequences of `stream` (batch, positions, d) go through a block together, memory permitting.

    On an accelerator all of them. On a CPU so many that what lies within an MLP, about four times as wide as the
    stream, is in memory that is used again (measured: docs/decisions/0013-one-block-at-a-time.md), in even parts; a
    quarter of that where memory is `scarce`.
    """
    if stream.device.type != "cpu":
        return len(stream)
    most = max(1, LARGEST_REUSED // ((4 if low_memory else 1) * MLP_WIDTH * stream[0].nbytes))
    return math.ceil(len(stream) / math.ceil(len(stream) / most))


def _flat(values: torch.Tensor) -> torch.Tensor:
    """(tokens, width)."""
    return values.reshape(-1, values.shape[-1])
