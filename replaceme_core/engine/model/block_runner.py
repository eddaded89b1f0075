"""Run a model one block at a time on a residual stream that the caller holds.

The model's own `forward` still prepares masks and positions, and computes what comes after the last block (final norm,
logits and their scaling). Meanwhile stubs that record or return a stream take the place of its blocks.
"""

import itertools
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutput

from replaceme_core.engine.model.allocator import release_memory
from replaceme_core.engine.model.lazy_model import block_reader, load_block
from replaceme_core.families.resolve import ResolvedModel, check_residual
from replaceme_core.library_errors import is_out_of_memory
from replaceme_core.request.defaults import LOGITS_AT_ONCE, MLP_WIDTH, PART_BYTES

logger = logging.getLogger(__name__)

LOGITS_AT_ONCE_BY_BLOCK = 2**21
"""Values of logits at a time where the model is read block by block: 8 MiB in float32."""


class Stop(Exception):
    """Ends a forward pass early: the values that were wanted have been recorded."""


@dataclass(frozen=True, kw_only=True)
class Hook:
    """The output of `module`, or with `on_input` its first input; with `copy`, safe from later in-place changes."""

    module: nn.Module
    on_input: bool = False
    copy: bool = False


@contextmanager
def record_values(hook: Hook, *, stop: bool = False) -> Iterator[list[torch.Tensor]]:
    """Yields a list that collects the values of `hook` while the context is open.

    With `stop` the forward pass ends there, by the exception `Stop`.
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

    if hook.on_input:
        handle = hook.module.register_forward_pre_hook(read, with_kwargs=True)
    else:
        handle = hook.module.register_forward_hook(lambda _module, _inputs, output: collect(output))
    with handle:
        yield seen


def replace_output(module: nn.Module, output: torch.Tensor) -> AbstractContextManager[object]:
    """`module` computes its output, but returns `output` in the same shape."""
    return module.register_forward_hook(lambda _module, _inputs, own: output.reshape(own.shape))


def scale_output(module: nn.Module, factor: float) -> AbstractContextManager[object]:
    """The output of `module` is multiplied by `factor`."""
    return module.register_forward_hook(lambda _module, _inputs, output: output * factor)


@contextmanager
def replace_forward(module: nn.Module, output: object) -> Iterator[None]:
    """`module` returns `output` and computes nothing."""
    own = vars(module).get("forward")  # set where an offloading library wraps the forward of the module
    vars(module)["forward"] = lambda *_args, **_kwargs: output
    try:
        yield
    finally:
        if own is None:
            del vars(module)["forward"]
        else:
            vars(module)["forward"] = own


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


@dataclass(kw_only=True)
class BlockRunner:
    """`enter` -> `run` for each block -> `leave`. Streams are (batch, positions, d)."""

    resolved: ResolvedModel
    blocks: nn.ModuleList = field(init=False)
    max_sequences: int | None = None
    """How many sequences go through a block together at most, once memory has run out `halvings` times."""
    halvings: int = 0
    _arguments: dict[tuple[int, ...], list[Arguments]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.blocks = self.resolved.blocks

    @property
    def is_lazy(self) -> bool:
        """Whether blocks are read from disk one at a time, since the model does not fit into memory."""
        return block_reader(self.blocks[0]) is not None

    def trim_memory(self) -> None:
        """Return freed memory to the system where blocks are read one at a time; elsewhere it is reused."""
        if self.is_lazy:
            release_memory()

    @contextmanager
    def _stubs(self, modules: list[nn.Module]) -> Iterator[None]:
        self.resolved.replace_blocks(nn.ModuleList(modules))
        try:
            yield
        finally:
            self.resolved.replace_blocks(self.blocks)

    def enter(self, tokens: torch.Tensor) -> torch.Tensor:
        """The stream before block 0 for `tokens` (batch, positions). No block is run."""
        last = len(self.blocks) - 1
        as_tuple = self.resolved.layout.block_returns_tuple
        stubs = [RecordingStub(block, last=index == last, as_tuple=as_tuple) for index, block in enumerate(self.blocks)]
        with self._stubs(list(stubs)), suppress(Stop):
            self._model(tokens)
        # Masks and positions depend on the shape alone: sequences are packed full, nothing is padded.
        self._arguments[tuple(tokens.shape)] = [stub.recorded for stub in stubs]
        stream = stubs[0].stream
        assert stream is not None, "the model did not call its first block"
        return stream

    def load_block(self, block: int) -> nn.Module:
        """The block with its weights in memory, until another block is run or asked for."""
        return load_block(self.blocks[block])

    def run(self, block: int, stream: torch.Tensor, *, written: torch.Tensor | None = None) -> torch.Tensor:
        """The stream after `block`.

        Here and below, `written` is the attention's write as `run_attention` returns it; it is not computed again.
        """
        return self._run(block, stream, hooks=(), written=written)[0]

    def _run(
        self, block: int, stream: torch.Tensor, *, hooks: Sequence[Hook], written: torch.Tensor | None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The stream after `block`, and the values that `hooks` recorded."""
        after, seen = self._in_parts(block, stream, hooks=hooks, written=written, stop=False)
        assert after is not None, "the block was not run to its end"
        return after, seen

    def _in_parts(
        self, block: int, stream: torch.Tensor, *, hooks: Sequence[Hook], written: torch.Tensor | None, stop: bool
    ) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        """Run a batch in parts (`sequences_at_once`), which are halved where memory runs out, down to one sequence.

        The smaller size is kept for all later blocks. With `stop`, nothing after the last of `hooks` is run, and there
        is no stream after the block.
        """
        while True:
            at_once = min(len(stream), self.max_sequences or sequences_at_once(stream, is_lazy=self.is_lazy))
            try:
                parts = [
                    self._run_part(block, part, hooks=hooks, written=given, stop=stop)
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
            # after the handler: the exception keeps the tensors of the failed attempt alive
            self.max_sequences, self.halvings = (at_once + 1) // 2, self.halvings + 1
            logger.warning("out of memory in block %d; from now on %d sequences at a time", block, self.max_sequences)
            if stream.device.type != "cpu":
                torch.get_device_module(stream.device).empty_cache()
        if len(parts) == 1:
            return parts[0]
        after = None if stop else torch.cat([part for part, _ in parts if part is not None])
        return after, [torch.cat([seen[index] for _, seen in parts]) for index in range(len(hooks))]

    def _run_part(
        self, block: int, stream: torch.Tensor, *, hooks: Sequence[Hook], written: torch.Tensor | None, stop: bool
    ) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        arguments, after = self._arguments_for(stream)[block], None
        with ExitStack() as stack:
            if written is not None:
                module = self.blocks[block]
                # A norm behind the attention would change `written`, so its output is replaced as well. An attention
                # returns a pair, with its weights.
                stack.enter_context(replace_output(self.resolved.attention_write(module), written))
                stack.enter_context(replace_forward(self.resolved.attention(module), (written, None)))
            seen = [stack.enter_context(record_values(hook, stop=stop and hook is hooks[-1])) for hook in hooks]
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
        """The stream after `block`, and the write of its MLP; both (batch, positions, d)."""
        hooks = [self._write(self.resolved.mlp_write(self.blocks[block]))]
        after, (write,) = self._run(block, stream, hooks=hooks, written=written)
        return after, self._scaled(write).reshape(after.shape)

    def run_attention(self, block: int, stream: torch.Tensor) -> torch.Tensor:
        """The write of the attention of `block` (batch, positions, d), not scaled; nothing after it is run."""
        hooks = [self._write(self.resolved.attention_write(self.blocks[block]))]
        _, (written,) = self._in_parts(block, stream, hooks=hooks, written=None, stop=True)
        return written.reshape(stream.shape)

    def project(self, block: int, projection: nn.Module, inputs: torch.Tensor, *, like: torch.Tensor) -> torch.Tensor:
        """The output of `projection` of `block` for `inputs` (tokens, f), in the shape of the stream `like`."""
        self.load_block(block)
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
        """The input of `projection` of `block` (tokens, f), and the stream (batch, positions, d) after its write.

        With `attention` the projection belongs to the attention: the stream is the one between attention and MLP, and
        nothing after the attention is run. Else it belongs to the MLP, and the stream is the one after the block.
        """
        inputs = Hook(module=projection, on_input=True)
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
        """Input (tokens, f) and output of `projection`, output of the `norm` after it (tokens, d each), and the stream.

        The stream is the one that `run_with_projection_input` returns.
        """
        hooks = [Hook(module=projection, on_input=True), Hook(module=projection), self._write(norm)]
        reached, (read, given, normed) = self._in_parts(block, stream, hooks=hooks, written=written, stop=attention)
        scaled = self._scaled(normed)
        if reached is None:
            reached = stream + scaled.reshape(stream.shape)
        return _flat(read), _flat(given), _flat(scaled), reached

    def input_of(
        self, block: int, stream: torch.Tensor, reader: nn.Module, *, written: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The input of `reader`, a module of `block` (tokens, f); nothing after it is run."""
        hooks = [Hook(module=reader, on_input=True)]
        return _flat(self._in_parts(block, stream, hooks=hooks, written=written, stop=True)[1][0])

    def run_with_writes(self, block: int, stream: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The stream after `block`, and the writes of its attention and its MLP, (tokens, d) each."""
        modules = [write(self.blocks[block]) for write in (self.resolved.attention_write, self.resolved.mlp_write)]
        after, seen = self._run(block, stream, hooks=[self._write(module) for module in modules], written=None)
        return after, _flat(self._scaled(seen[0])), _flat(self._scaled(seen[1]))

    def _write(self, module: nn.Module) -> Hook:
        return Hook(module=module, copy=self.resolved.layout.added_in_place)

    def _scaled(self, output: torch.Tensor) -> torch.Tensor:
        """A recorded output as it is added to the stream."""
        scale = self.resolved.write_scale
        return output if scale == 1 else output * scale

    def leave(self, stream: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """The logits (batch, positions, vocabulary) for the stream after the last block."""
        with self._stubs([OutputStub(stream, as_tuple=self.resolved.layout.block_returns_tuple)]):
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


def sequences_at_once(stream: torch.Tensor, *, is_lazy: bool) -> int:
    """How many sequences of `stream` (batch, positions, d) go through a block together, memory permitting.

    On an accelerator all. On a CPU as many as keep the activations within an MLP, about `MLP_WIDTH` times as wide
    as the stream, stay in memory that the allocator reuses (measured:
    docs/explanation/text-and-memory.md#memory), in
    parts of even size; a quarter of that where the model `is_lazy`.
    """
    if stream.device.type != "cpu":
        return len(stream)
    most = max(1, PART_BYTES // ((4 if is_lazy else 1) * MLP_WIDTH * stream[0].nbytes))
    return math.ceil(len(stream) / math.ceil(len(stream) / most))


def _flat(values: torch.Tensor) -> torch.Tensor:
    """As (tokens, width)."""
    return values.reshape(-1, values.shape[-1])


def mean_loss(losses: Sequence[float], batches: Sequence[torch.Tensor]) -> float:
    """Mean loss in nats per prediction, from `losses` summed over each of the first batches.

    `batches` are token ids, (sequences, positions) each.
    """
    return sum(losses) / predictions_of(batches[: len(losses)])


def predictions_of(batches: Sequence[torch.Tensor]) -> int:
    """How many tokens are predicted in `batches`, (sequences, positions) each: all but the first of each sequence."""
    return sum(tokens.shape[0] * (tokens.shape[1] - 1) for tokens in batches)


def summed_loss(
    block_runner: BlockRunner, stream: torch.Tensor, tokens: torch.Tensor, *, scored: torch.Tensor | None = None
) -> float:
    """Loss in nats summed over predictions; `stream` (batch, positions, d), `tokens` (batch, positions).

    Of the tokens that are `scored` (batch, positions), by default of all but the first of each sequence. Final norm and
    head work on each position by itself, and run only where a loss is wanted.
    """
    vocabulary = block_runner.resolved.model.config.vocab_size
    positions = max(1, (LOGITS_AT_ONCE_BY_BLOCK if block_runner.is_lazy else LOGITS_AT_ONCE) // vocabulary)
    before, wanted = stream[:, :-1], tokens[:, 1:]
    if scored is None:
        before, wanted = before.flatten(0, 1), wanted.flatten()
    else:
        chosen = scored[:, 1:].to(tokens.device)
        before, wanted = before[chosen], wanted[chosen]
    total = 0.0
    for part, ids in zip(before.split(positions), wanted.split(positions), strict=True):
        logits = block_runner.leave(part.unsqueeze(0), ids.unsqueeze(0)).flatten(0, 1)
        total += float(torch.nn.functional.cross_entropy(logits.float(), ids, reduction="sum"))
    return total
