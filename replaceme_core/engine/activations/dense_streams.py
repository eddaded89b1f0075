"""The residual streams of the dense model on the calibration tokens: read where they are stored, computed elsewhere.

Streams are (sequences, positions, d), in the dtype of the model. The stream before block i is X_i = L_(i-1); the one
after the last block is named by the number of blocks. Every run of a dense block on one batch is counted.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from replaceme_core.engine.activations.cache import CachedActivations
from replaceme_core.engine.activations.cut_sums import PARTS, Batch, schedule
from replaceme_core.engine.activations.tensor_store import (
    DamagedStore,
    MemoryStore,
    TensorStore,
    gram_key,
    stream_key,
    write_key,
)
from replaceme_core.engine.model.block_runner import BlockRunner
from replaceme_core.engine.model.changes import Cut, FittedCut, run_pruned
from replaceme_core.engine.numerics.stream import Stream, token_weights
from replaceme_core.engine.numerics.sums import WriteSums

logger = logging.getLogger(__name__)


class CutStreams(NamedTuple):
    """What a map for one cut is fitted on, (tokens, d) each.

    `write` is what the MLP of the anchor block adds to the stream, `kept` the stream after the anchor block, both on
    the pruned prefix; `end` is the dense stream after the last block of the cut.
    """

    write: torch.Tensor
    kept: torch.Tensor
    end: torch.Tensor


@dataclass(kw_only=True)
class DenseStreams:
    """The dense streams of all batches, numbered as in `batches`: fit tokens first, then held-out tokens.

    `cached` names the entry of an earlier job, or the place to leave one for a later job. Without it, streams are
    stored in what `make_store` returns, once a method asks for a single stream; with `always_store` from the first
    request on, for a model whose blocks are read from disk one after the other. `dense_block_runs` counts every run of
    a block of the dense model on one batch.
    """

    block_runner: BlockRunner
    fit: torch.Tensor
    held_out: torch.Tensor
    batch_size: int
    advance: Callable[[float], None]
    held_out_sources: torch.Tensor | None = None
    """Of each held-out sequence, as `schedule` takes them: indices into `source_names`."""
    source_names: Sequence[str] = ("text",)
    cached: CachedActivations | None = None
    always_store: bool = False
    make_store: Callable[[], TensorStore] = MemoryStore
    store: TensorStore | None = None
    complete: bool = False
    """Whether `store` has the streams of every block and batch."""
    window_streams: TensorStore | None = None
    """The held-out streams before anchor blocks, where replays start, and after the last block. The last pass over
    windows leaves them where nothing else is stored."""
    dense_block_runs: int = 0
    batches: list[Batch] = field(init=False)
    _found: bool = False

    def __post_init__(self) -> None:
        self.batches = schedule(self.fit, self.held_out, self.batch_size, sources=self.held_out_sources)
        if self.cached is not None:
            self.store = self.cached.find()
            self.complete = self._found = self.store is not None

    @property
    def stores_streams(self) -> bool:
        """Whether streams are, or will be, stored, so that any cut can be served without running a dense block."""
        return self.always_store or self.store is not None or self.cached is not None

    @property
    def fit_batches(self) -> range:
        """Numbers of the batches of fit tokens."""
        return range(self.held_out_batches.start)

    @property
    def held_out_batches(self) -> range:
        """Numbers of the held-out batches."""
        first = sum(not batch.held_out for batch in self.batches)
        return range(first, len(self.batches))

    @property
    def held_out_tokens(self) -> list[torch.Tensor]:
        """Of each held-out batch, (sequences, positions), on the host."""
        return [self.batches[batch].tokens for batch in self.held_out_batches]

    def tokens(self, batch: int) -> torch.Tensor:
        """(sequences, positions), on the device of the model."""
        return self.batches[batch].tokens.to(self.device)

    @property
    def device(self) -> torch.device:
        device: torch.device = self.block_runner.resolved.model.device
        return device

    # Stored values: the first request runs the whole dense model.

    def before(self, block: int, batch: int) -> torch.Tensor:
        """The stored stream X that `block` reads; for the number of blocks, the stream after the last one."""
        return self._stored(stream_key(block), batch)

    def after(self, block: int, batch: int) -> torch.Tensor:
        """The stored stream L after `block`."""
        return self.before(block + 1, batch)

    def write(self, block: int, batch: int) -> torch.Tensor:
        """What the MLP of `block` adds to the stream, M, stored as (sequences, positions, d)."""
        return self._stored(write_key(block), batch)

    def gram(self, block: int, part: int) -> torch.Tensor:
        """M'M (d, d) of the MLP of `block`, over `FIT`, `FIRST_HALF` or `SECOND_HALF`."""
        return self._stored(gram_key(block), part)

    # Streams without a full pass: read if they are stored, else computed from the nearest stream that is known.

    def read_or_run(self, block: int, batch: int) -> torch.Tensor:
        """The stream that `block` reads, with as few runs of dense blocks as possible; stores nothing.

        No run where streams are stored; on held-out tokens, after a pass over windows, those since the last anchor.
        """
        if self.complete:
            return self.before(block, batch)
        store = self.window_streams
        if store is not None and self.batches[batch].held_out:
            since = max((one for one in range(block + 1) if store.count(stream_key(one))), default=None)
            if since is not None:
                stream = store.get(stream_key(since), self.held_out_batches.index(batch)).to(self.device)
                return self.run(stream, since=since, until=block)
        return self.run(self.block_runner.enter(self.tokens(batch)), since=0, until=block)

    def streams_through(self, batch: int, *, last_block: int) -> Iterator[torch.Tensor]:
        """The streams before blocks 0, 1, ... `last_block`, and the one after it."""
        if self.stores_streams:
            for block in range(last_block + 2):
                yield self.before(block, batch)
            return
        stream = self.block_runner.enter(self.tokens(batch))
        yield stream
        for block in range(last_block + 1):
            stream = self.run(stream, since=block, until=block + 1)
            yield stream

    def at_cut(self, batch: int, cut: Cut, *, done: Sequence[FittedCut]) -> CutStreams:
        """The streams at both ends of `cut`, whose prefix is already pruned by `done`."""
        if self.complete and not done:
            kept, write = self.after(cut.anchor, batch), self.write(cut.anchor, batch)
        else:
            first = min([cut.anchor, *(one.cut.anchor for one in done)])
            stream = self.read_or_run(first, batch)
            kept, write = run_pruned(self.block_runner, stream, done=done, since=first, until=cut.anchor)
        if self.complete:
            end = self.after(cut.end, batch)
        elif done:
            end = self.run(stream, since=first, until=cut.end + 1)
        else:
            self.dense_block_runs += 1  # nothing is pruned before the anchor block, so it ran as the dense one
            end = self.run(kept, since=cut.start, until=cut.end + 1)
        return CutStreams(write=write.flatten(0, 1), kept=kept.flatten(0, 1), end=end.flatten(0, 1))

    def run(self, stream: torch.Tensor, *, since: int, until: int) -> torch.Tensor:
        """The stream before block `until`, from `stream` before block `since`. The runs are counted."""
        for block in range(since, until):
            stream = self.block_runner.run(block, stream)
            self.dense_block_runs += 1
        return stream

    # The full pass.

    def capture(self) -> None:
        """Run the dense model once and store everything, unless that has been done."""
        if self.complete:
            return
        store: TensorStore
        if self.cached is not None:
            files = store = self.cached.begin()
        else:
            store = self.make_store() if self.store is None else self.store
        self._capture(store)
        self.store, self.complete = store, True
        if self.cached is not None:
            self.cached.complete(files)

    def _capture(self, store: TensorStore) -> None:
        """Block after block, each with all batches, so that a block is in memory once."""
        blocks, width = len(self.block_runner.blocks), self.block_runner.resolved.model.config.hidden_size
        for number in range(len(self.batches)):
            store.put(stream_key(0), self.block_runner.enter(self.tokens(number)))
        for block in range(blocks):
            sums = [WriteSums.zeros(width, device=self.device) for _ in PARTS]
            for number, batch in enumerate(self.batches):
                stream = store.get(stream_key(block), number).to(self.device)
                after, write = self.block_runner.run_with_mlp_write(block, stream)
                self.dense_block_runs += 1
                kept = Stream(after.flatten(0, 1))
                sums[batch.part].add(write.flatten(0, 1), weights=token_weights(kept))
                store.put(stream_key(block + 1), after)
                store.put(write_key(block), write)
                self.advance((block + (number + 1) / len(self.batches)) / blocks)
            for each in sums:
                store.put(gram_key(block), each.gram)
            self.block_runner.trim_memory()

    def _stored(self, name: str, index: int) -> torch.Tensor:
        self.capture()
        assert self.store is not None
        try:
            values = self.store.get(name, index)
        except DamagedStore as error:
            if self.cached is None:
                raise
            logger.warning("the cached activations are damaged (%s); the dense model runs again", error)
            self.cached.discard()
            self.complete = False
            self.capture()
            values = self.store.get(name, index)
        return values.to(self.device)


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What a refitted block is compared with, by batch: three dense streams, all (sequences, positions, d).

    `before` is the one before the block, `between` the one between its attention and its MLP, `end` the one that the
    pruned model's next block should read.
    """

    before: Callable[[int], torch.Tensor]
    between: Callable[[int], torch.Tensor]
    end: Callable[[int], torch.Tensor]


@dataclass(kw_only=True)
class DenseTargets:
    """The dense streams of all batches before one block after another, from `block` on, for a refit in that order.

    Reads the streams that are stored; where none are, it holds those of one block in memory.
    """

    dense: DenseStreams
    block: int
    _streams: list[torch.Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.dense.complete:
            return
        for batch in range(len(self.dense.batches)):
            stream = self.dense.block_runner.enter(self.dense.tokens(batch))
            self._streams.append(self.dense.run(stream, since=0, until=self.block))

    def stream(self, batch: int) -> torch.Tensor:
        """Before the present block (sequences, positions, d)."""
        return self.dense.before(self.block, batch) if self.dense.complete else self._streams[batch]

    def advance_to(self, until: int) -> Targets:
        """The targets of the present block, and on to block `until`. To be called before the block's weights change."""
        dense, block, self.block = self.dense, self.block, until
        if dense.complete:
            return Targets(
                before=lambda batch: dense.before(block, batch),
                between=lambda batch: dense.after(block, batch) - dense.write(block, batch),
                end=lambda batch: dense.before(until, batch),
            )
        before, between = list(self._streams), list[torch.Tensor]()
        for batch, stream in enumerate(self._streams):
            after, write = dense.block_runner.run_with_mlp_write(block, stream)
            between.append(after - write)
            dense.dense_block_runs += 1
            self._streams[batch] = dense.run(after, since=block + 1, until=until)
        end = list(self._streams)
        return Targets(before=before.__getitem__, between=between.__getitem__, end=end.__getitem__)
