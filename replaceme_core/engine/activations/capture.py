"""What methods read of the dense model: its streams and MLP writes, the sums of any cut, and its losses.

Streams are (sequences, positions, d), in the dtype of the model. The stream before block i is X_i = L_(i-1); the one
after the last block is named by the number of blocks. Every run of a dense block on one batch is counted.

A method that compares many sets of blocks has the dense model run once, block by block, and its streams stored. What is
not stored is run again when it is read, to the same bit.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import torch

from replaceme_core.engine.activations.cache import CachedActivations
from replaceme_core.engine.activations.tensor_store import (
    DamagedStore,
    FileStore,
    activation_bytes,
    stream_key,
    write_key,
)
from replaceme_core.engine.model.block_runner import BlockRunner, summed_loss
from replaceme_core.engine.model.changes import Cut, FittedCut, run_pruned
from replaceme_core.engine.numerics.stream import MeanAngle, Stream, token_weights
from replaceme_core.engine.numerics.sums import SOLVE_DTYPE, Moments
from replaceme_core.engine.text.drawing import TokenSet, alternating
from replaceme_core.request.defaults import CHOICE_STREAM_BYTES, HELD_OUT_BATCHES

logger = logging.getLogger(__name__)

Found = TypeVar("Found")
Losses = Mapping[int, float]
"""Summed losses in nats, by the number of the held-out batch."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """`tokens` (sequences, positions) on the host; those of a held-out batch come from one `source`.

    Every second held-out batch of a source belongs to the `second_half`. Of a held-out batch, `scored` (sequences,
    positions) tells which tokens a candidate must predict, but never the first; nothing follows the last of them.
    """

    tokens: torch.Tensor
    held_out: bool = False
    second_half: bool = False
    source: int = 0
    scored: torch.Tensor | None = None

    @property
    def predictions(self) -> int:
        """How many tokens a candidate must predict."""
        return self.tokens[:, 1:].numel() if self.scored is None else int(self.scored[:, 1:].sum())


def schedule(text: TokenSet, batch_size: int) -> list[Batch]:
    """The batches of a pass: those of the fit tokens, then the held-out ones.

    The held-out batches of sources alternate in proportion, so that the first of them have a part of each. What follows
    the last scored token of a batch is not run.
    """
    small, sources = min(batch_size, max(1, len(text.held_out) // HELD_OUT_BATCHES)), text.held_out_sources
    scored = torch.ones_like(text.held_out, dtype=torch.bool) if text.held_out_scored is None else text.held_out_scored
    held_out: list[Batch] = []
    for source in sources.unique().tolist():
        parts, counts = (values[sources == source].split(small) for values in (text.held_out, scored))
        for number, (tokens, count) in enumerate(zip(parts, counts, strict=True)):
            end = int(count.any(dim=0).nonzero().max()) + 1
            batch = Batch(
                tokens=tokens[:, :end],
                held_out=True,
                second_half=number % 2 == 1,
                source=source,
                scored=count[:, :end],
            )
            held_out.append(batch)
    turns = alternating(torch.tensor([batch.source for batch in held_out], dtype=torch.long))
    return [
        *(Batch(tokens=tokens) for tokens in text.fit.split(batch_size)),
        *(held_out[turn] for turn in turns.tolist()),
    ]


@dataclass(frozen=True, kw_only=True)
class CaptureRecord:
    """Work and memory of a job's streams.

    `dense_block_runs` counts the runs of a block of the dense model on one batch; `cached` says whether the activations
    came from the cache. `stream_bytes` is the size of one stream of all tokens, `statistics_bytes` of the sums of one
    cut, `kept_bytes` of all streams that were stored. `batch_halvings` counts how often memory
    ran out in a block and the batch was halved.
    """

    dense_block_runs: int
    cached: bool
    stream_bytes: int
    statistics_bytes: int
    kept_bytes: int
    batch_halvings: int

    def metrics(self) -> list[tuple[str, float, str]]:
        """Name, value and unit of each metric."""
        halvings = [("batch_halvings", float(self.batch_halvings), "times")] if self.batch_halvings else []
        sizes = [(name, float(getattr(self, name)), "bytes") for name in ("stream_bytes", "statistics_bytes")]
        return [("dense_block_runs", float(self.dense_block_runs), "runs"), *sizes, *halvings]


PROOF = "residual_check_error"
MATRICES = 4
"""M'M and M'E, over fit and over held-out tokens."""


class CutStreams(NamedTuple):
    """What a map for one cut is fitted on, (tokens, d) each.

    `write` is what the MLP of the anchor block adds to the stream, `kept` the stream after the anchor block, both on
    the pruned prefix; `end` is the dense stream after the last block of the cut.
    """

    write: torch.Tensor
    kept: torch.Tensor
    end: torch.Tensor


@dataclass(kw_only=True)
class CutStatistics:
    """The sums of one cut over fit tokens and held-out tokens, and the angular distance across it.

    They serve every ridge, and give the residual of the map without a second pass. The prefix is pruned by `done`. A
    map of them is to be `diagonal` or not. Tokens that are sinks at either end, `sinks` of them, are scaled down.
    """

    cut: Cut
    done: Sequence[FittedCut]
    fit: Moments
    held_out: Moments
    diagonal: bool
    angle: MeanAngle = field(default_factory=MeanAngle)
    sinks: int = 0

    @property
    def tokens(self) -> int:
        """Number of tokens in both sums."""
        return self.fit.tokens + self.held_out.tokens

    def add(self, write: torch.Tensor, *, kept: Stream, end: Stream, held_out: bool) -> None:
        """Add a batch: `write` (tokens, d) and the streams at both ends."""
        weights = token_weights(kept, end)
        self.sinks += int((weights < 1).sum())
        self.angle.add(kept, end, mask=weights == 1)
        (self.held_out if held_out else self.fit).add(write, kept=kept, end=end, weights=weights)


@dataclass(kw_only=True)
class Activations:
    """The dense streams of all batches, numbered as in `batches`: fit tokens first, then held-out tokens.

    `cached` names the entry of an earlier job, or the place to leave one for a later job. Without it, streams are
    stored in what `make_store` returns, once a method wants them; with `always_store` before anything is read, for a
    model whose blocks are read from disk one after the other. `dense_block_runs` counts every run of a block of the
    dense model on one batch.
    """

    block_runner: BlockRunner
    text: TokenSet
    batch_size: int
    advance: Callable[[float], None]
    make_store: Callable[[], FileStore]
    cached: CachedActivations | None = None
    always_store: bool = False
    store: FileStore | None = None
    stored: Sequence[int] = ()
    """The batches whose streams `store` has, in the order in which it has them."""
    dense_block_runs: int = 0
    may_go: Callable[[Sequence[int]], bool] = lambda _: True
    """Whether blocks may be removed together: in some models those that keep the pattern of kinds of blocks."""
    _dense_losses: dict[int, float] = field(init=False, default_factory=dict)
    batches: list[Batch] = field(init=False)
    _found: bool = False

    def __post_init__(self) -> None:
        self.batches = schedule(self.text, self.batch_size)
        if self.cached is not None:
            self.store = self.cached.find()
            self._found = self.store is not None
            self.stored = range(len(self.batches)) if self._found else ()

    @property
    def complete(self) -> bool:
        """Whether the streams of every batch are stored."""
        return len(self.stored) == len(self.batches)

    @property
    def fit_batches(self) -> range:
        """Numbers of the batches of fit tokens."""
        return range(self.held_out_batches.start)

    @property
    def held_out_batches(self) -> range:
        """Numbers of the held-out batches."""
        first = sum(not batch.held_out for batch in self.batches)
        return range(first, len(self.batches))

    def count(self, batches: Iterable[int] | None = None) -> int:
        """How many tokens these batches have, by default all."""
        some = self.batches if batches is None else [self.batches[batch] for batch in batches]
        return sum(batch.tokens.numel() for batch in some)

    def tokens(self, batch: int) -> torch.Tensor:
        """(sequences, positions), on the device of the model."""
        return self.batches[batch].tokens.to(self.device)

    @property
    def device(self) -> torch.device:
        device: torch.device = self.block_runner.resolved.model.device
        return device

    # The pass that stores streams.

    def capture(self) -> None:
        """Run the dense model once and store its streams, unless that has been done.

        Those of all batches, or where these take more than `CHOICE_STREAM_BYTES` (567 GB for 32 blocks of width 4,096
        and 1,024 x 1,024 tokens), of an even share of the fitted and of the held-out ones: sets of blocks are compared
        on these. Block after block, each with all batches, so that a block is in memory once.
        """
        if self.stored:
            return
        files = None if self.cached is None else self.cached.begin()
        store = files or self.make_store()
        numbers = range(len(self.batches)) if files or self.always_store else self._share()
        blocks = len(self.block_runner.blocks)
        for number in numbers:
            store.put(stream_key(0), self.block_runner.enter(self.tokens(number)))
        for block in range(blocks):
            for place in range(len(numbers)):
                stream = store.get(stream_key(block), place).to(self.device)
                after, write = self.block_runner.run_with_last_write(block, stream)
                self.dense_block_runs += 1
                store.put(stream_key(block + 1), after)
                store.put(write_key(block), write)
                self.advance((block + (place + 1) / len(numbers)) / blocks)
            self.block_runner.trim_memory()
        self.store, self.stored = store, numbers
        if self.cached is not None and files is not None:
            self.cached.complete(files)

    def _share(self) -> Sequence[int]:
        """The batches that there is room for: of the held-out ones the first, which have a part of each source."""
        size = activation_bytes(self.block_runner, tokens=self.count())
        share = min(1.0, CHOICE_STREAM_BYTES / size)
        parts = (self.fit_batches, self.held_out_batches)
        return [number for part in parts for number in part[: max(1, int(share * len(part)))]]

    def prepare(self) -> None:
        """Store all streams before any is read, where later jobs or a model that is read block by block need that."""
        if self.always_store or self.cached is not None:
            self.capture()

    def _read(self, name: str, batch: int) -> torch.Tensor:
        """A stored value of a batch that is stored. Raises `DamagedStore`; then nothing is stored any more."""
        assert self.store is not None
        try:
            return self.store.get(name, self.stored.index(batch)).to(self.device)
        except DamagedStore:
            if self.cached is not None:
                self.cached.discard()
            self.stored = ()
            raise

    # Streams: read where they are stored, else computed; then nothing is stored.

    def before(self, block: int, batch: int) -> torch.Tensor:
        """The stream X that `block` reads; for the number of blocks, the stream after the last one."""
        self.prepare()
        if batch in self.stored:
            return self._read(stream_key(block), batch)
        return self.run(self.block_runner.enter(self.tokens(batch)), since=0, until=block)

    def after(self, block: int, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The stream L after `block`, and what its last write adds, M; both (sequences, positions, d)."""
        self.prepare()
        if batch in self.stored:
            return self._read(stream_key(block + 1), batch), self._read(write_key(block), batch)
        before = self.before(block, batch)
        self.dense_block_runs += 1
        return self.block_runner.run_with_last_write(block, before)

    def streams_through(self, batch: int, *, last_block: int) -> Iterator[torch.Tensor]:
        """The streams before blocks 0, 1, ... `last_block`, and the one after it; they are not stored for that."""
        if batch in self.stored:
            yield from (self._read(stream_key(block), batch) for block in range(last_block + 2))
            return
        stream = self.block_runner.enter(self.tokens(batch))
        yield stream
        for block in range(last_block + 1):
            stream = self.run(stream, since=block, until=block + 1)
            yield stream

    def at_cut(self, batch: int, cut: Cut, *, done: Sequence[FittedCut] = ()) -> CutStreams:
        """The streams at both ends of `cut`, whose prefix is already pruned by `done`.

        The reference fits every map on the unpruned model, so that later maps are fitted to inputs that never occur.
        """
        if done:
            first = min(one.cut.anchor for one in done)
            stream = self.before(first, batch)
            kept, write = run_pruned(self.block_runner, stream, done=done, since=first, until=cut.anchor)
        else:
            first = cut.start
            kept, write = self.after(cut.anchor, batch)
            stream = kept
        is_stored = batch in self.stored
        end = self.before(cut.end + 1, batch) if is_stored else self.run(stream, since=first, until=cut.end + 1)
        return CutStreams(write=write.flatten(0, 1), kept=kept.flatten(0, 1), end=end.flatten(0, 1))

    def run(self, stream: torch.Tensor, *, since: int, until: int) -> torch.Tensor:
        """The stream before block `until`, from `stream` before block `since`. The runs are counted."""
        for block in range(since, until):
            stream = self.block_runner.run(block, stream)
            self.dense_block_runs += 1
        return stream

    # Sums for least squares, and losses.

    def statistics(
        self,
        cut: Cut,
        *,
        done: Sequence[FittedCut] = (),
        numbers: Sequence[int] | None = None,
        diagonal: bool = False,
    ) -> CutStatistics:
        """The sums of any `cut`, whose prefix is already pruned by `done`, toward the dense stream at its end.

        Over the batches `numbers`, by default all. Runs no block of the dense model a second time where streams are
        stored.
        """
        numbers = range(len(self.batches)) if numbers is None else numbers
        width = self.block_runner.resolved.config.hidden_size
        fit, held_out = (Moments.zeros(width, device=self.device) for _ in range(2))
        sums = CutStatistics(cut=cut, done=done, fit=fit, held_out=held_out, diagonal=diagonal)
        for place, number in enumerate(numbers, start=1):
            write, kept, end = self.at_cut(number, cut, done=done)
            sums.add(write, kept=Stream(kept), end=Stream(end), held_out=self.batches[number].held_out)
            if number not in self.stored:  # else it takes no time
                self.advance(place / len(numbers))
        self.block_runner.trim_memory()
        return sums

    def prove(self, positions: int) -> float:
        """The largest relative error of the residual check on the first `positions` of the first sequence.

        A cached entry carries the result for this very model. Raises `NumericalFailure`.
        """
        if self.complete and self.cached is not None and PROOF in self.cached.facts:
            return self.cached.facts[PROOF]
        error = self.block_runner.prove(self.text.fit[:1, :positions].to(self.device))
        self.dense_block_runs += len(self.block_runner.blocks)
        if self.cached is not None:
            self.cached.facts[PROOF] = error
        return error

    def scored_loss(self, batch: int, stream: torch.Tensor) -> float:
        """Summed loss in nats over the predictions of a held-out batch that count.

        `stream` (sequences, positions, d) is the one after the last block.
        """
        return summed_loss(self.block_runner, stream, self.tokens(batch), scored=self.batches[batch].scored)

    def dense_losses(self) -> Losses:
        """`scored_loss` of the dense model on each held-out batch."""
        if not self._dense_losses:
            last = len(self.block_runner.blocks)
            self._dense_losses = {
                batch: self.scored_loss(batch, self.before(last, batch)) for batch in self.held_out_batches
            }
        return self._dense_losses

    def record(self) -> CaptureRecord:
        """What the passes so far computed and stored."""
        width = self.block_runner.resolved.config.hidden_size
        tokens = self.count()
        return CaptureRecord(
            dense_block_runs=self.dense_block_runs,
            cached=self._found,
            stream_bytes=tokens * width * self.block_runner.resolved.model.dtype.itemsize,
            statistics_bytes=MATRICES * width**2 * SOLVE_DTYPE.itemsize,
            batch_halvings=self.block_runner.halvings,
            kept_bytes=0 if self.store is None else self.store.nbytes,
        )


def with_intact_streams(action: Callable[[], Found]) -> Found:
    """What `action` returns. Where stored streams are damaged it begins anew, once: they are captured again.

    Not where the damage is found: a method may have changed weights on trial there.
    """
    try:
        return action()
    except DamagedStore as error:
        logger.warning("stored activations are damaged (%s); the dense model runs again", error)
        return action()


def capture_distances(
    activations: Activations, cuts: Sequence[Cut], *, last_tokens: bool = False
) -> dict[Cut, MeanAngle]:
    """The mean angular distance across each of `cuts`, of any length, over all tokens that are no sinks.

    With `last_tokens` over the last one of each sequence. From one pass that stores nothing, or from the batches that
    are stored.
    """
    activations.prepare()
    angles = {cut: MeanAngle() for cut in cuts}
    last_block = max(cut.end for cut in cuts)
    starts = {cut.start: max(one.end for one in cuts if one.start == cut.start) for cut in cuts}
    numbers = activations.stored or range(len(activations.batches))
    for place, number in enumerate(numbers, start=1):
        kept: dict[int, Stream] = {}  # by the first block of a cut, which reads it
        for block, stream in enumerate(activations.streams_through(number, last_block=last_block)):
            here = Stream((stream[:, -1:] if last_tokens else stream).flatten(0, 1))
            for cut in cuts:
                if cut.end == block - 1:
                    mask = (token_weights(kept[cut.start], here) == 1) | last_tokens
                    angles[cut].add(kept[cut.start], here, mask=mask)
            kept = {start: one for start, one in kept.items() if starts[start] >= block}
            if block in starts:
                kept[block] = here
        if number not in activations.stored:  # else it takes no time
            activations.advance(place / len(numbers))
    return angles


@dataclass(kw_only=True)
class Targets:
    """The dense streams that a refit of one block after another is compared with, all (sequences, positions, d).

    Reads the streams that are stored, and holds those of the other `batches` in memory, of one block at a time. The
    first block is `until`.
    """

    dense: Activations
    until: int
    batches: Sequence[int]
    _block: int = field(init=False)
    _before: dict[int, torch.Tensor] = field(init=False, default_factory=dict)
    _between: dict[int, torch.Tensor] = field(init=False, default_factory=dict)
    _end: dict[int, torch.Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.dense.prepare()
        held = [batch for batch in self.batches if batch not in self.dense.stored]
        self._end = {batch: self.dense.before(self.until, batch) for batch in held}

    def advance_to(self, until: int) -> None:
        """On to the next block, whose end is the stream before block `until`. Before the block's weights change."""
        self._block, self.until = self.until, until
        self._before, self._between = dict(self._end), {}
        for batch, stream in self._before.items():
            after, write = self.dense.block_runner.run_with_last_write(self._block, stream)
            self._between[batch] = after - write
            self.dense.dense_block_runs += 1
            self._end[batch] = self.dense.run(after, since=self._block + 1, until=until)

    def before(self, batch: int) -> torch.Tensor:
        """The stream before the block."""
        return self._before[batch] if batch in self._before else self.dense.before(self._block, batch)

    def between(self, batch: int) -> torch.Tensor:
        """The stream before its last write."""
        return self._between[batch] if batch in self._between else torch.sub(*self.dense.after(self._block, batch))

    def end(self, batch: int) -> torch.Tensor:
        """The stream that the pruned model's next block should read, of any batch."""
        return self._end[batch] if batch in self._end else self.dense.before(self.until, batch)
