"""Run a model one block at a time on a residual stream that the caller holds.

The model's own `forward` still prepares masks and positions, and computes what comes after the last block (final norm,
logits and their scaling). Meanwhile its blocks record or return a stream, and compute nothing.
"""

import inspect
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutput

from replaceme_core.engine.model.allocator import release_memory
from replaceme_core.engine.model.lazy_model import files_of, load_block
from replaceme_core.families.layout import Weight, Write
from replaceme_core.families.resolve import ResolvedModel, as_returned, check_residual, embeddings, first_tensor
from replaceme_core.library_errors import is_out_of_memory
from replaceme_core.request.defaults import LOGITS_AT_ONCE, LOGITS_AT_ONCE_BY_BLOCK, MLP_WIDTH, PART_BYTES

logger = logging.getLogger(__name__)

ROUTER_LOGITS = "output_router_logits"
"""An argument of models with experts: what routers return while the blocks are not run is not there."""

Arguments = tuple[Sequence[object], Mapping[str, object]]
"""What a model passes to a block after the stream, and by name: masks, positions, rotary embeddings ..."""

Written = Sequence[torch.Tensor]
"""The outputs, not scaled, of the first writes of a block, (batch, positions, d) each."""


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
        first = first_tensor(values)
        assert first is not None, f"{type(hook.module).__name__} gives no tensor"
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
    """`module` computes its output, but returns `output` in the same shape; of several values, the first."""

    def returned(_module: nn.Module, _inputs: object, own: torch.Tensor | tuple[torch.Tensor, ...]) -> object:
        first, *others = own if isinstance(own, tuple) else (own,)
        replaced = output.reshape(first.shape)
        return (replaced, *others) if isinstance(own, tuple) else replaced

    return module.register_forward_hook(returned)


def scale_output(module: nn.Module, factor: float) -> AbstractContextManager[object]:
    """The output of `module` is multiplied by `factor`."""
    return module.register_forward_hook(lambda _module, _inputs, output: output * factor)


@contextmanager
def replace_forward(module: nn.Module, forward: Callable[..., object]) -> Iterator[None]:
    """`module` computes `forward` instead of its own."""
    own = vars(module).get("forward")  # set where an offloading library, or `lazy_model`, wraps that of the module
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        if own is None:
            del vars(module)["forward"]
        else:
            vars(module)["forward"] = own


def returning(value: object) -> Callable[..., object]:
    """A forward that returns `value` and computes nothing."""
    return lambda *_args, **_kwargs: value


@dataclass(frozen=True, kw_only=True)
class ProjectionValues:
    """Of one write: `inputs` (tokens, f) and `output` (tokens, d) of its projection, and what is added, with its scale.

    `written` (tokens, d) is the scaled output, after a norm if there is one. `stream` (batch, positions, d) is the one
    after this write, or where that is the last one, after the block.
    """

    inputs: torch.Tensor
    output: torch.Tensor
    written: torch.Tensor
    stream: torch.Tensor


@dataclass(kw_only=True)
class BlockRunner:
    """`enter` -> `run` for each block -> `leave`. Streams are (batch, positions, d).

    A model of images has `pixels` (images, channels, height, width), on the host. A sequence of its tokens is the
    number of an image, once for each position that the image takes; it is judged by its embeddings (`references`).
    """

    resolved: ResolvedModel
    pixels: torch.Tensor | None = None
    references: torch.Tensor | None = None
    """The embeddings of the images by the dense model, (images, width of an embedding)."""
    blocks: nn.ModuleList = field(init=False)
    max_sequences: int | None = None
    """How many sequences go through a block together at most, once memory has run out `halvings` times."""
    halvings: int = 0
    _arguments: dict[tuple[int, ...], list[Arguments]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.blocks = self.resolved.blocks

    @property
    def loss_unit(self) -> str:
        """Of what results are judged by (`summed_loss`)."""
        return "nats" if self.references is None else "1 - cosine"

    def judged(self, tokens: torch.Tensor) -> int:
        """How many predictions `summed_loss` is over: all tokens but the first of each sequence, or all images."""
        return len(tokens) if self.references is not None else tokens[:, 1:].numel()

    @property
    def is_lazy(self) -> bool:
        """Whether blocks are read from disk one at a time, since the model does not fit into memory."""
        return files_of(self.blocks[0]) is not None

    @property
    def positions_at_once(self) -> int:
        """For how many positions logits are made at a time: for the model they are one sequence, which it must take."""
        config, values = self.resolved.config, LOGITS_AT_ONCE_BY_BLOCK if self.is_lazy else LOGITS_AT_ONCE
        longest = int(config.max_position_embeddings) if self.resolved.layout.learned_positions else values
        return max(1, min(longest, values // int(config.vocab_size)))

    def trim_memory(self) -> None:
        """Return freed memory to the system where blocks are read one at a time; elsewhere it is reused."""
        if self.is_lazy:
            release_memory()

    def enter(self, tokens: torch.Tensor) -> torch.Tensor:
        """The stream before block 0 for `tokens` (batch, positions). No block is run."""
        streams, recorded = list[torch.Tensor](), list[Arguments]()

        def record(*args: object, **kwargs: object) -> object:
            # where the model names the stream, it is the first argument of its blocks all the same
            stream, *others = args or (kwargs.pop(next(iter(kwargs))),)
            assert isinstance(stream, torch.Tensor)
            streams.append(stream)
            recorded.append((others, kwargs))
            if len(recorded) == len(self.blocks):
                raise Stop
            return as_returned(stream, self.resolved.layout.block_returns)

        with self._computing(record), suppress(Stop):
            self._model(tokens)
        # Masks and positions depend on the shape alone: sequences are packed full, nothing is padded.
        self._arguments[tuple(streams[0].shape[:2])] = recorded
        return streams[0]

    @contextmanager
    def _computing(self, forward: Callable[..., object]) -> Iterator[None]:
        """All blocks compute `forward` while the context is open."""
        with ExitStack() as stack:
            for block in self.blocks:
                stack.enter_context(replace_forward(block, forward))
            yield

    def remember(self, numbers: torch.Tensor) -> None:
        """Compute the embeddings of the images of these numbers (n,) by the model as it is now, for `references`."""
        assert self.pixels is not None
        found = torch.cat([self._model(one.view(1, 1)) for one in numbers]).cpu()
        self.references = found.new_zeros(len(self.pixels), found.shape[1])
        self.references[numbers] = found

    def run(self, block: int, stream: torch.Tensor, *, written: Written = ()) -> torch.Tensor:
        """The stream after `block`.

        Here and below, `written` are the first of the block's writes, as `run_write` returns them; they are not
        computed again.
        """
        (after,) = self._values(block, stream, [Hook(module=self.blocks[block])], written=written)
        return after

    def _values(
        self, block: int, stream: torch.Tensor, hooks: Sequence[Hook], *, written: Written
    ) -> list[torch.Tensor]:
        """What each of `hooks` records while `block` runs; nothing after the last of them is run.

        A batch is run in parts (`sequences_at_once`), which are halved where memory runs out, down to one sequence. The
        smaller size is kept for all later blocks.
        """
        while True:
            at_once = min(len(stream), self.max_sequences or sequences_at_once(stream, is_lazy=self.is_lazy))
            try:
                parts = [
                    self._values_of_part(block, part, hooks, written=given)
                    for part, *given in zip(
                        stream.split(at_once), *(one.split(at_once) for one in written), strict=True
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
        return parts[0] if len(parts) == 1 else [torch.cat(values) for values in zip(*parts, strict=True)]

    def _values_of_part(
        self, block: int, stream: torch.Tensor, hooks: Sequence[Hook], *, written: Written
    ) -> list[torch.Tensor]:
        args, kwargs = self._arguments_for(stream)[block]
        with ExitStack() as stack:
            for write, known in zip(self.writes(block) if written else (), written, strict=False):
                # A norm behind the unit would change what is known, so its output is replaced as well.
                stack.enter_context(replace_output(self._hook(block, write).module, known))
                if write.unit is not None:
                    unit = self.blocks[block].get_submodule(write.unit)
                    stack.enter_context(replace_forward(unit, returning(as_returned(known, write.returns))))
            seen = [stack.enter_context(record_values(hook, stop=hook is hooks[-1])) for hook in hooks]
            with suppress(Stop):
                self.blocks[block](stream, *args, **kwargs)
        return [each[0] for each in seen]

    def _arguments_for(self, stream: torch.Tensor) -> list[Arguments]:
        shape = tuple(stream.shape[:2])
        if shape not in self._arguments:
            self.enter(torch.zeros(shape, dtype=torch.long, device=stream.device))
        return self._arguments[shape]

    def writes(self, block: int) -> tuple[Write, ...]:
        """What `block` adds to the stream, in the order of computation."""
        return self.resolved.writes(self.blocks[block])

    def run_with_last_write(
        self, block: int, stream: torch.Tensor, *, written: Written = ()
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The stream after `block`, and the write that absorbs a map, with its scale; both (batch, positions, d)."""
        last = self.writes(block)[-1]
        hooks = [self._hook(block, last), Hook(module=self.blocks[block])]
        write, after = self._values(block, stream, hooks, written=written)
        return after, self._scaled(write, last).reshape(after.shape)

    def run_write(self, block: int, stream: torch.Tensor, number: int, *, written: Written = ()) -> torch.Tensor:
        """The output (batch, positions, d) of write `number` of `block`, not scaled; nothing after it is run."""
        (output,) = self._values(block, stream, [self._hook(block, self.writes(block)[number])], written=written)
        return output.reshape(stream.shape)

    def project(self, block: int, projection: Weight, inputs: torch.Tensor, *, like: torch.Tensor) -> torch.Tensor:
        """The output of the `projection` of a write for `inputs` (tokens, f), in the shape of the stream `like`."""
        output: torch.Tensor = load_block(self.blocks[block]).get_submodule(projection.module)(inputs)
        return output.reshape(like.shape)

    def run_with_projection(
        self, block: int, stream: torch.Tensor, number: int, *, written: Written = ()
    ) -> ProjectionValues:
        """What write `number` of `block` computes from the input of its projection, which it must have.

        Nothing after it is run, unless it is the last one.
        """
        writes = self.writes(block)
        write = writes[number]
        assert write.projection is not None
        projection = self.blocks[block].get_submodule(write.projection.module)
        hooks = [Hook(module=projection, on_input=True), Hook(module=projection), self._hook(block, write)]
        if number == len(writes) - 1:
            hooks.append(Hook(module=self.blocks[block]))
        inputs, output, added, *last = self._values(block, stream, hooks, written=written)
        scaled = self._scaled(added, write).reshape(stream.shape)
        after = last[0] if last else self.with_writes(block, stream, [*written, added])
        return ProjectionValues(inputs=flat(inputs), output=flat(output), written=flat(scaled), stream=after)

    def with_writes(self, block: int, stream: torch.Tensor, outputs: Written) -> torch.Tensor:
        """`stream` (batch, positions, d) plus the first writes of `block`, whose `outputs` are not scaled.

        Of all writes that is the stream after it; where blocks change the stream, the block is run for that.
        """
        if self.resolved.layout.changes_stream:
            return self.run(block, stream, written=outputs)
        for output, write in zip(outputs, self.writes(block), strict=False):
            stream = stream + self._scaled(output, write).reshape(stream.shape)
        return stream

    def input_of(self, block: int, stream: torch.Tensor, reader: str, *, written: Written = ()) -> torch.Tensor:
        """The input (tokens, f) of the module of `block` at the path `reader`; nothing after it is run."""
        hooks = [Hook(module=self.blocks[block].get_submodule(reader), on_input=True)]
        return flat(self._values(block, stream, hooks, written=written)[0])

    def run_with_writes(self, block: int, stream: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The stream after `block` (batch, positions, d), and all its writes, (tokens, d) each."""
        writes = self.writes(block)
        hooks = [*(self._hook(block, write) for write in writes), Hook(module=self.blocks[block])]
        *seen, after = self._values(block, stream, hooks, written=())
        return after, [flat(self._scaled(output, write)) for output, write in zip(seen, writes, strict=True)]

    def _hook(self, block: int, write: Write) -> Hook:
        module = self.blocks[block].get_submodule(write.module)
        return Hook(module=module, copy=self.resolved.layout.added_in_place)

    def _scaled(self, output: torch.Tensor, write: Write) -> torch.Tensor:
        """A recorded output as it is added to the stream."""
        scale = self.resolved.scale(write)
        return output if scale == 1 else output * scale

    def leave(self, stream: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """What the model makes of the stream after the last block.

        Logits (batch, positions, vocabulary), or of images embeddings (batch, width of an embedding).
        """
        with self._computing(returning(as_returned(stream, self.resolved.layout.block_returns))):
            return self._model(tokens)

    def _model(self, tokens: torch.Tensor) -> torch.Tensor:
        model = self.resolved.model
        if self.pixels is not None:
            return embeddings(model, self.pixels[tokens[:, 0].cpu()].to(model.device, model.dtype))
        output: CausalLMOutput = model(input_ids=tokens, use_cache=False, **without_side_outputs(model))
        assert output.logits is not None
        return output.logits

    def prove(self, tokens: torch.Tensor) -> float:
        """Run the residual check on every block; returns the largest relative error. Raises `NumericalFailure`."""
        stream, worst = self.enter(tokens), 0.0
        for index in range(len(self.blocks)):
            if self.resolved.layout.changes_stream:
                after, write = self.run_with_last_write(index, stream)
                module = self._hook(index, self.writes(index)[-1]).module
                with scale_output(module, 2):
                    more = self.run(index, stream)
                error = check_residual(block=index, before=flat(after), after=flat(more), writes=[flat(write)])
            else:
                after, writes = self.run_with_writes(index, stream)
                error = check_residual(block=index, before=flat(stream), after=flat(after), writes=writes)
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


def without_side_outputs(model: nn.Module) -> dict[str, bool]:
    """Arguments of a model's forward that switch off what it would compute from more than the stream."""
    return {ROUTER_LOGITS: False} if ROUTER_LOGITS in inspect.signature(model.forward).parameters else {}


def flat(values: torch.Tensor) -> torch.Tensor:
    """As (tokens, width)."""
    return values.reshape(-1, values.shape[-1])


def embedding_distances(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """1 - cosine of each row of two sets of embeddings, (images, width) each, in [0, 2]."""
    return 1 - torch.nn.functional.cosine_similarity(found.float(), wanted.float(), dim=-1)


def summed_loss(
    block_runner: BlockRunner, stream: torch.Tensor, tokens: torch.Tensor, *, scored: torch.Tensor | None = None
) -> float:
    """Loss in nats summed over predictions; `stream` (batch, positions, d), `tokens` (batch, positions).

    Of the tokens that are `scored` (batch, positions), by default of all but the first of each sequence. Final norm and
    head work on each position by itself, and run only where a loss is wanted. Of images, it is the distance of their
    embeddings to those of the dense model, 1 - cosine. Infinite where it is no number: no other loss is less than that.
    """
    if block_runner.references is not None:
        wanted = block_runner.references[tokens[:, 0].cpu()].to(stream.device)
        total = float(embedding_distances(block_runner.leave(stream, tokens), wanted).sum())
        return math.inf if math.isnan(total) else total
    positions = block_runner.positions_at_once
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
    return math.inf if math.isnan(total) else total
