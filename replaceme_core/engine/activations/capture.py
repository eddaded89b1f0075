"""What methods read of the dense model: its streams and MLP writes, and the sums of any cut of any length.

Streams are (sequences, positions, d), in the dtype of the model. The stream before block i is X_i = L_(i-1); the one
after the last block is named by the number of blocks. Every run of a dense block on one batch is counted.

Where a method needs no more than the sums of some windows and no store is asked for, a pass that stores no stream is
enough. Otherwise the dense model runs once, block by block, and its streams are stored. The sums are the same to the
bit either way.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import NamedTuple

import torch

from replaceme_core.engine.activations.cache import CachedActivations
from replaceme_core.engine.activations.cut_sums import (
    PARTS,
    Batch,
    CutStatistics,
    Screen,
    WindowSums,
    schedule,
    statistics_of,
)
from replaceme_core.engine.activations.tensor_store import (
    DamagedStore,
    MemoryStore,
    TensorStore,
    stream_key,
    write_key,
)
from replaceme_core.engine.model.block_runner import BlockRunner, summed_loss
from replaceme_core.engine.model.changes import Cut, FittedCut, run_pruned
from replaceme_core.engine.numerics.stream import MeanAngle, Stream, token_weights
from replaceme_core.engine.numerics.sums import SOLVE_DTYPE

logger = logging.getLogger(__name__)

MATRICES = 4  # M'M and M'E, over fit and over held-out tokens


@dataclass(frozen=True, kw_only=True)
class CaptureRecord:
    """Work and memory of a job's streams and sums.

    `dense_block_runs` counts the runs of a block of the dense model on one batch; `cached` says whether the activations
    came from the cache. `stream_bytes` is the size of one stream of all tokens, `statistics_bytes` of the sums that
    were in memory at once, `kept_bytes` of all streams and sums that were stored, in memory or in files.
    `batch_halvings` counts how often memory ran out in a block and the batch was halved.
    """

    dense_block_runs: int
    cached: bool
    stream_bytes: int
    statistics_bytes: int
    kept_bytes: int
    batch_halvings: int

    def as_dict(self) -> dict[str, int | bool]:
        return asdict(self)

    def metrics(self) -> list[tuple[str, float, str]]:
        """Name, value and unit of each metric."""
        sizes = [(name, float(getattr(self, name)), "bytes") for name in ("stream_bytes", "statistics_bytes")]
        halvings = [("batch_halvings", float(self.batch_halvings), "times")] if self.batch_halvings else []
        return [("dense_block_runs", float(self.dense_block_runs), "runs"), *sizes, *halvings]


def statistics_bytes(*, cuts: int, width: int) -> int:
    """Bytes of the sums of `cuts` cuts in a stream of `width` values."""
    return cuts * MATRICES * width * width * SOLVE_DTYPE.itemsize


PROOF = "residual_check_error"


class CutStreams(NamedTuple):
    """What a map for one cut is fitted on, (tokens, d) each.

    `write` is what the MLP of the anchor block adds to the stream, `kept` the stream after the anchor block, both on
    the pruned prefix; `end` is the dense stream after the last block of the cut.
    """

    write: torch.Tensor
    kept: torch.Tensor
    end: torch.Tensor


@dataclass(kw_only=True)
class Activations:
    """The dense streams of all batches, numbered as in `batches`: fit tokens first, then held-out tokens; and sums.

    `cached` names the entry of an earlier job, or the place to leave one for a later job. Without it, streams are
    stored in what `make_store` returns, once a method asks for a single stream; with `always_store` from the first
    request on, for a model whose blocks are read from disk one after the other. `make_held_out_store` makes the store
    for the held-out streams before anchor blocks, which a pass that stores no other stream leaves. `dense_block_runs`
    counts every run of a block of the dense model on one batch.
    """

    block_runner: BlockRunner
    fit: torch.Tensor
    held_out: torch.Tensor
    batch_size: int
    advance: Callable[[float], None]
    held_out_sources: torch.Tensor | None = None
    """Of each held-out sequence, as `schedule` takes them: indices into `source_names`."""
    held_out_scored: torch.Tensor | None = None
    """Of each token of these, as `schedule` takes them."""
    source_names: Sequence[str] = ("text",)
    cached: CachedActivations | None = None
    always_store: bool = False
    make_store: Callable[[], TensorStore] = MemoryStore
    make_held_out_store: Callable[[], TensorStore] = MemoryStore
    store: TensorStore | None = None
    complete: bool = False
    """Whether `store` has the streams of every block and batch."""
    window_streams: TensorStore | None = None
    """The held-out streams before anchor blocks, where replays start, and after the last block. The last pass over
    windows leaves them where nothing else is stored."""
    dense_block_runs: int = 0
    allows: Callable[[Sequence[int]], bool] | None = None
    """Whether blocks may be removed together; `None`: any."""
    _dense_losses: list[float] = field(init=False, default_factory=list)
    _most_cuts: int = 0
    """The most cuts whose statistics were in memory at once."""
    batches: list[Batch] = field(init=False)
    _found: bool = False

    def __post_init__(self) -> None:
        self.batches = schedule(
            self.fit, self.held_out, self.batch_size, sources=self.held_out_sources, scored=self.held_out_scored
        )
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
        """Run the dense model once and store everything, unless that has been done.

        Block after block, each with all batches, so that a block is in memory once.
        """
        if self.complete:
            return
        files = None if self.cached is None else self.cached.begin()
        store = files or self.store or self.make_store()
        blocks = len(self.block_runner.blocks)
        for number in range(len(self.batches)):
            store.put(stream_key(0), self.block_runner.enter(self.tokens(number)))
        for block in range(blocks):
            for number in range(len(self.batches)):
                stream = store.get(stream_key(block), number).to(self.device)
                after, write = self.block_runner.run_with_mlp_write(block, stream)
                self.dense_block_runs += 1
                store.put(stream_key(block + 1), after)
                store.put(write_key(block), write)
                self.advance((block + (number + 1) / len(self.batches)) / blocks)
            self.block_runner.trim_memory()
        self.store, self.complete = store, True
        if self.cached is not None and files is not None:
            self.cached.complete(files)

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

    # Sums for least squares, and losses.

    def statistics(
        self, cut: Cut, *, done: Sequence[FittedCut] = (), numbers: Sequence[int] | None = None
    ) -> CutStatistics:
        """The sums of any `cut`, whose prefix is already pruned by `done`, toward the dense stream at its end.

        Over the batches `numbers`, by default all. Runs no block of the dense model a second time where streams are
        stored.
        """
        self._most_cuts = max(self._most_cuts, 1)
        numbers = range(len(self.batches)) if numbers is None else numbers
        if self.stores_streams:
            sums = self._stored_sums(cut, numbers, done=done)
        else:
            sums = self._passed_sums(cut, numbers, done)
        fit, first, second = sums
        return statistics_of(fit, first.merged(second, [cut]), self.block_runner.resolved)[0]

    def allowed(self, cuts: Sequence[Cut]) -> Sequence[Cut]:
        """Those of `cuts` that keep the pattern of kinds of blocks, where the request asks for that."""
        return cuts if self.allows is None else [cut for cut in cuts if self.allows(cut.blocks)]

    def windows(self, cuts: Sequence[Cut], *, screen: Screen | None = None) -> list[CutStatistics]:
        """The sums of `cuts`, of any lengths, or of those that `screen` keeps; those not allowed are left out."""
        cuts = self.allowed(cuts)
        if self.stores_streams:
            return self._stored_windows(cuts, screen)
        self._most_cuts = max(self._most_cuts, len(cuts))
        return self._passed_windows(cuts, screen)

    def _passed_windows(self, cuts: Sequence[Cut], screen: Screen | None) -> list[CutStatistics]:
        """From one pass over the held-out tokens, and then over the fit tokens for the cuts that remain.

        The held-out streams before anchor blocks, and the one after the last block if it is run, are stored.
        """
        resolved, blocks, step = self.block_runner.resolved, len(self.block_runner.blocks), self._token_progress()
        streams = self.window_streams = self.make_held_out_store()
        first, second = WindowSums.empty(cuts, resolved), WindowSums.empty(cuts, resolved)
        for number in self.held_out_batches:
            sums = second if self.batches[number].second_half else first
            stream = sums.run(self.block_runner, self.tokens(number), before=streams)
            if sums.last_block == blocks - 1:
                streams.put(stream_key(blocks), stream)
            step(number)
        if screen is not None:
            for one in statistics_of(first, second, resolved):
                screen.add(one)
        held_out = first.merged(second, cuts if screen is None else screen.remaining())
        del first, second, sums
        fit = WindowSums.empty(held_out.cuts, resolved)
        for number in self.fit_batches:
            fit.run(self.block_runner, self.tokens(number))
            step(number)
        for some, batches in ((cuts, self.held_out_batches), (fit.cuts, self.fit_batches)):
            self.dense_block_runs += (max(cut.end for cut in some) + 1) * len(batches)
        return statistics_of(fit, held_out, resolved)

    def _passed_sums(self, cut: Cut, numbers: Sequence[int], done: Sequence[FittedCut]) -> list[WindowSums]:
        """The sums of `cut` over each of `PARTS` from a pass over the batches `numbers` that stores nothing.

        The reference fits every map on the unpruned model, so that later maps are fitted to inputs that never occur.
        """
        sums, step = [WindowSums.empty([cut], self.block_runner.resolved) for _ in PARTS], self._token_progress()
        for number in numbers:
            start = self.block_runner.enter(self.tokens(number))
            pruned, write = run_pruned(self.block_runner, start, done=done, until=cut.anchor)
            dense, since = (start, 0) if done else (pruned, cut.start)
            for block in range(since, cut.end + 1):
                dense = self.block_runner.run(block, dense)
            sums[self.batches[number].part].add(cut, write=write, kept=pruned, end=dense)
            step(number)
        self.dense_block_runs += (cut.end + 1) * len(numbers)
        return sums

    def _token_progress(self) -> Callable[[int], None]:
        """A function to call with the number of each batch that is done; it reports the part of all tokens."""
        total, done = self.fit.numel() + self.held_out.numel(), 0

        def step(number: int) -> None:
            nonlocal done
            done += self.batches[number].tokens.numel()
            self.advance(done / total)

        return step

    def _stored_windows(self, cuts: Sequence[Cut], screen: Screen | None) -> list[CutStatistics]:
        if screen is None:
            self._most_cuts = max(self._most_cuts, len(cuts))
            return [self.statistics(cut) for cut in cuts]
        resolved, halves = self.block_runner.resolved, dict[Cut, tuple[WindowSums, WindowSums]]()
        for cut in cuts:
            _, first, second = self._stored_sums(cut, self.held_out_batches)
            halves[cut] = first, second
            screen.add(*statistics_of(first, second, resolved))
            self._most_cuts = max(self._most_cuts, len(halves))
            halves = {one: halves[one] for one in screen.remaining()}
        found: list[CutStatistics] = []
        while halves:
            cut = next(iter(halves))
            fit, _, _ = self._stored_sums(cut, self.fit_batches)
            first, second = halves.pop(cut)
            found += statistics_of(fit, first.merged(second, [cut]), resolved)
        return found

    def _stored_sums(self, cut: Cut, numbers: Sequence[int], *, done: Sequence[FittedCut] = ()) -> list[WindowSums]:
        """The sums of `cut` over each of `PARTS`, from the stored streams of the batches `numbers`."""
        self.capture()
        sums = [WindowSums.empty([cut], self.block_runner.resolved) for _ in PARTS]
        for number in numbers:
            if done:
                first = min(one.cut.anchor for one in done)
                stream = self.before(first, number)
                kept, write = run_pruned(self.block_runner, stream, done=done, since=first, until=cut.anchor)
            else:
                kept, write = self.after(cut.anchor, number), self.write(cut.anchor, number)
            end = self.after(cut.end, number)
            sums[self.batches[number].part].add(cut, write=write, kept=kept, end=end)
        self.block_runner.trim_memory()
        return sums

    def prove(self, positions: int) -> float:
        """The largest relative error of the residual check on the first `positions` of the first sequence.

        A cached entry carries the result for this very model. Raises `NumericalFailure`.
        """
        if self.complete and self.cached is not None and PROOF in self.cached.facts:
            return self.cached.facts[PROOF]
        error = self.block_runner.prove(self.fit[:1, :positions].to(self.device))
        self.dense_block_runs += len(self.block_runner.blocks)
        if self.cached is not None:
            self.cached.facts[PROOF] = error
        return error

    def scored_loss(self, batch: int, stream: torch.Tensor) -> float:
        """Summed loss in nats over the predictions of a held-out batch that count.

        `stream` (sequences, positions, d) is the one after the last block, at least at the first `Batch.positions`.
        """
        one = self.batches[batch]
        scored = None if one.scored is None else one.scored[:, : one.positions]
        return summed_loss(
            self.block_runner, stream[:, : one.positions], self.tokens(batch)[:, : one.positions], scored=scored
        )

    def dense_losses(self) -> list[float]:
        """`scored_loss` of the dense model on each held-out batch."""
        if not self._dense_losses:
            last = len(self.block_runner.blocks)
            self._dense_losses = [
                self.scored_loss(batch, self.read_or_run(last, batch)) for batch in self.held_out_batches
            ]
        return self._dense_losses

    def record(self) -> CaptureRecord:
        """What the passes so far computed and stored."""
        width = self.block_runner.resolved.model.config.hidden_size
        tokens = self.fit.numel() + self.held_out.numel()
        return CaptureRecord(
            dense_block_runs=self.dense_block_runs,
            cached=self._found,
            stream_bytes=tokens * width * self.block_runner.resolved.model.dtype.itemsize,
            statistics_bytes=statistics_bytes(cuts=self._most_cuts, width=width),
            batch_halvings=self.block_runner.halvings,
            kept_bytes=0 if self.store is None else self.store.nbytes,
        )


def capture_distances(
    activations: Activations, cuts: Sequence[Cut], *, keep_streams: bool = False
) -> dict[Cut, MeanAngle]:
    """The mean angular distance across each of `cuts`, of any length, over all tokens that are no sinks.

    One pass, or none where streams are stored. With `keep_streams` the held-out streams before every anchor block are
    stored, where a replay starts.
    """
    angles = {cut: MeanAngle() for cut in cuts}
    last_block, blocks = max(cut.end for cut in cuts), len(activations.block_runner.blocks)
    starts = {cut.start: max(one.end for one in cuts if one.start == cut.start) for cut in cuts}
    streams, anchors = None, set[int]()
    if keep_streams and not activations.stores_streams:
        streams, anchors = activations.make_held_out_store(), {cut.anchor for cut in cuts}
    for number, batch in enumerate(activations.batches):
        kept: dict[int, Stream] = {}  # by the first block of a cut, which reads it
        for block, stream in enumerate(activations.streams_through(number, last_block=last_block)):
            here = Stream(stream.flatten(0, 1))
            for cut in cuts:
                if cut.end == block - 1:
                    mask = token_weights(kept[cut.start], here) == 1
                    angles[cut].add(kept[cut.start], here, mask=mask)
            kept = {start: one for start, one in kept.items() if starts[start] >= block}
            if block in starts:
                kept[block] = here
            if streams is not None and batch.held_out and (block in anchors or block == blocks):
                streams.put(stream_key(block), stream)
        activations.advance((number + 1) / len(activations.batches))
    if streams is not None:
        activations.window_streams = streams
    return angles


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

    dense: Activations
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
