"""What one dense pass leaves behind, for every method to read: the stream before and after each block, what each MLP
writes, and the sums of any cut of any length.

Where nothing asks for more than the windows of one length, and nobody keeps the rest, a pass that keeps no stream is
enough (`capture_windows`); otherwise blocks run in order with the streams of all tokens between them, each block once
for each batch. The sums are the same to the bit either way.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from replaceme_core.activations.batches import Batch, schedule
from replaceme_core.activations.cached_activations import CachedActivations
from replaceme_core.activations.cut_sums import AnchorSums, CutStatistics, Screen
from replaceme_core.activations.held_out_loss import dense_loss
from replaceme_core.activations.held_out_streams import HeldOutStreams, HeldOutView
from replaceme_core.activations.record import CaptureRecord, statistics_bytes
from replaceme_core.activations.tensor_store import (
    DamagedStore,
    MemoryStore,
    TensorStore,
    gram_name,
    stream_name,
    write_name,
)
from replaceme_core.activations.window_sums import (
    Windows,
    WindowsPass,
    WindowSums,
    capture_next_cut,
    capture_windows,
    one_cut,
)
from replaceme_core.models.block_runner import BlockRunner
from replaceme_core.models.cut import Cut, FittedCut, run_pruned
from replaceme_core.numerics.stream import Stream
from replaceme_core.numerics.sums import WriteSums

PROOF = "residual_check_error"
DENSE_LOSS = "dense_held_out_loss"
FIT, FIRST, SECOND = 0, 1, 2  # places in a list of `Streams`: over the fit tokens, and two halves of the held-out ones
logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Activations:
    """Batches are numbered as in `batches`: those of the fit tokens first, then the held-out ones.

    `keeping` names what an earlier job has left, or where to leave it for a later one. Without it a pass keeps what it
    sees in what `make_streams` gives, once a method asks for a single stream; or from the first with `keeps_streams`,
    for a model whose blocks had better be run one after the other. `dense_block_runs` counts every run of a block of
    the dense model on one batch.
    """

    block_runner: BlockRunner
    fit: torch.Tensor
    held_out: torch.Tensor
    batch_size: int
    advance: Callable[[float], None]
    cached: CachedActivations | None = None
    keeps_streams: bool = False
    make_streams: Callable[[], TensorStore] = MemoryStore
    make_held_out: Callable[[], TensorStore] = MemoryStore  # for those before keepers, where the others are not kept
    run_windows: WindowsPass = capture_windows  # where no stream is kept
    in_shards: bool = False  # `run_windows` then runs the fit tokens for all windows, whatever a screen leaves
    streams: TensorStore | None = None
    passed: HeldOutStreams | None = None  # of the last pass over windows, where the others are not kept
    complete: bool = False
    dense_block_runs: int = 0
    batches: list[Batch] = field(init=False)
    _found: bool = False
    _sums: int = 0
    """Statistics of so many cuts were handed out at once, at most."""

    def __post_init__(self) -> None:
        self.batches = schedule(self.fit, self.held_out, self.batch_size)
        if self.cached is not None:
            self.streams = self.cached.find()
            self.complete = self._found = self.streams is not None

    @property
    def keeps(self) -> bool:
        """Whether streams are kept, so that any cut can be had without a block of the dense model."""
        return self.keeps_streams or self.streams is not None or self.cached is not None

    @property
    def held_out_batches(self) -> range:
        """Numbers of the held-out batches."""
        first = sum(not batch.held_out for batch in self.batches)
        return range(first, len(self.batches))

    @property
    def held_out_tokens(self) -> list[torch.Tensor]:
        """Of each held-out batch, (sequences, positions), on the host."""
        return [self.batches[batch].tokens for batch in self.held_out_batches]

    @property
    def fit_batches(self) -> range:
        return range(self.held_out_batches.start)

    def tokens(self, batch: int) -> torch.Tensor:
        """(sequences, positions), on the device of the model."""
        return self.batches[batch].tokens.to(self._device)

    def before(self, block: int, batch: int) -> torch.Tensor:
        """The dense stream X that `block` reads (sequences, positions, d); of the number of blocks: the last stream."""
        return self._get(stream_name(block), batch)

    def after(self, block: int, batch: int) -> torch.Tensor:
        """The dense stream L after `block` (sequences, positions, d)."""
        return self.before(block + 1, batch)

    def write(self, block: int, batch: int) -> torch.Tensor:
        """What the MLP of `block` adds to the dense stream, M (sequences, positions, d)."""
        return self._get(write_name(block), batch)

    def statistics(self, cut: Cut, *, done: Sequence[FittedCut] = ()) -> CutStatistics:
        """The sums of any `cut`, whose prefix is already pruned by `done`, toward the dense stream at its end.

        Runs no block of the dense model a second time where streams are kept.
        """
        self._sums = max(self._sums, 1)
        if not self.keeps:
            self.dense_block_runs += (cut.end + 1) * len(self.batches)
            return capture_next_cut(
                self.block_runner,
                cut,
                done=done,
                fit=self.fit,
                held_out=self.held_out,
                batch_size=self.batch_size,
                advance=self.advance,
            )
        sums, halves = self._gather(cut, range(len(self.batches)), done=done)
        return sums.judged_by(halves.joined([cut])).statistics()[0]

    def windows(self, cuts: Sequence[Cut], *, screen: Screen | None = None) -> Windows:
        """The sums of `cuts`, of any lengths, or of those that `screen` leaves; and the streams before keepers."""
        if self.keeps:
            return self._kept_windows(cuts, screen), self.held_out_streams()
        self._sums = max(self._sums, len(cuts))
        statistics, self.passed = self.run_windows(
            self.block_runner,
            cuts,
            streams=self.make_held_out(),
            fit=self.fit,
            held_out=self.held_out,
            batch_size=self.batch_size,
            advance=self.advance,
            screen=screen,
        )
        fitted = cuts if self.in_shards else [one.cut for one in statistics]
        for some, batches in ((cuts, self.held_out_batches), (fitted, self.fit_batches)):
            self.dense_block_runs += (max(cut.end for cut in some) + 1) * len(batches)
        return statistics, self.passed

    def _kept_windows(self, cuts: Sequence[Cut], screen: Screen | None) -> list[CutStatistics]:
        if screen is None:
            self._sums = max(self._sums, len(cuts))
            return [self.statistics(cut) for cut in cuts]
        left: dict[Cut, WindowSums] = {}
        for cut in cuts:
            _, left[cut] = self._gather(cut, self.held_out_batches)
            screen.look(*left[cut].statistics())
            self._sums = max(self._sums, len(left))
            left = {one: left[one] for one in screen.field()}
        found: list[CutStatistics] = []
        while left:
            cut = next(iter(left))
            sums, _ = self._gather(cut, self.fit_batches)
            found += sums.judged_by(left.pop(cut).joined([cut])).statistics()
        return found

    def _gather(self, cut: Cut, numbers: range, *, done: Sequence[FittedCut] = ()) -> tuple[WindowSums, WindowSums]:
        """From the streams that are kept, of the batches `numbers`; as `one_cut`."""
        self.capture()
        anchors = None if done else self._keeper(cut.anchor)
        sums, halves = one_cut(cut, resolved=self.block_runner.resolved, anchors=anchors)
        for number in numbers:
            batch = self.batches[number]
            if done:
                first = min(one.cut.anchor for one in done)
                stream = self.before(first, number)
                kept, write = run_pruned(self.block_runner, stream, done=done, since=first, until=cut.anchor)
            else:
                kept, write = self.after(cut.anchor, number), self.write(cut.anchor, number)
            into = halves if batch.held_out else sums
            into.add_cut(
                cut, write=write, kept=kept, end=self.after(cut.end, number), second=batch.second, anchor=bool(done)
            )
        self.block_runner.trim_memory()
        return sums, halves

    def _keeper(self, block: int) -> tuple[AnchorSums, AnchorSums]:
        """What all cuts after `block` share: over the fit tokens, and over the halves of the held-out ones."""
        fit, first, second = (self._get(gram_name(block), place) for place in (FIT, FIRST, SECOND))
        counts = [
            sum(batch.tokens.numel() for batch in self.batches if batch.held_out and batch.second == half)
            for half in (False, True)
        ]
        halves = AnchorSums(
            fit=WriteSums(gram=first.clone(), tokens=counts[0]),  # a copy: the second one is added to it
            held_out=WriteSums(gram=second, tokens=counts[1]),
        )
        sums = WriteSums(gram=fit, tokens=self.fit.numel())
        return AnchorSums(fit=sums, held_out=sums.emptied()), halves

    def held_out_streams(self) -> HeldOutStreams:
        """Where replays start: before any block, read when they are asked for."""
        blocks = len(self.block_runner.blocks)
        return HeldOutStreams(
            tokens=[self.tokens(batch) for batch in self.held_out_batches],
            before={block: self._view(block) for block in range(blocks)},
            last=self._view(blocks),
        )

    def _view(self, block: int) -> HeldOutView:
        """The stream before `block` on the held-out batches."""
        return HeldOutView(read=partial(self.before, block), numbers=self.held_out_batches)

    def prove(self, positions: int) -> float:
        """The largest relative error of the residual check on so many positions of the first sequence.

        An earlier job that has left its streams has proved this very model. Raises `NumericalFailure`.
        """
        if self.complete and self.cached is not None and PROOF in self.cached.facts:
            return self.cached.facts[PROOF]
        error = self.block_runner.prove(self.fit[:1, :positions].to(self._device))
        self.dense_block_runs += len(self.block_runner.blocks)
        if self.cached is not None:
            self.cached.facts[PROOF] = error
        return error

    def record(self) -> CaptureRecord:
        """What was captured and what it took."""
        width = self.block_runner.resolved.model.config.hidden_size
        tokens = self.fit.numel() + self.held_out.numel()
        return CaptureRecord(
            dense_block_runs=self.dense_block_runs,
            cached=self._found,
            stream_bytes=tokens * width * self.block_runner.resolved.model.dtype.itemsize,
            statistics_bytes=statistics_bytes(cuts=self._sums, width=width),
            batch_halvings=self.block_runner.halvings,
            kept_bytes=0 if self.streams is None else self.streams.nbytes,
        )

    def dense_loss(self, streams: HeldOutStreams) -> float:
        """Mean next-token loss in nats of the dense model on the held-out tokens; `streams` are those of a pass."""
        known = self.cached.facts.get(DENSE_LOSS) if self.cached is not None else None
        return dense_loss(self.block_runner, streams) if known is None else known

    def capture(self) -> None:
        """Run the dense model once, if that has not been done."""
        if self.complete:
            return
        streams: TensorStore
        if self.cached is not None:
            files = streams = self.cached.begin()
        else:
            streams = self.make_streams() if self.streams is None else self.streams
        self._run(streams)
        self.streams, self.complete = streams, True
        if self.cached is not None:
            self.cached.facts[DENSE_LOSS] = dense_loss(self.block_runner, self.held_out_streams())
            self.cached.complete(files)

    def _run(self, streams: TensorStore) -> None:
        """Block after block, each with the streams of all batches."""
        blocks = len(self.block_runner.blocks)
        for number in range(len(self.batches)):
            streams.put(stream_name(0), self.block_runner.enter(self.tokens(number)))
        for block in range(blocks):
            sums = AnchorSums.empty(self.block_runner.resolved, held_out=False)
            halves = AnchorSums.empty(self.block_runner.resolved)
            for number, batch in enumerate(self.batches):
                stream = streams.get(stream_name(block), number).to(self._device)
                after, write = self.block_runner.run_with_mlp_write(block, stream)
                self.dense_block_runs += 1
                into = halves if batch.held_out else sums
                into.add(write=write, kept=Stream(after.flatten(0, 1)), held_out=batch.second)
                streams.put(stream_name(block + 1), after)
                streams.put(write_name(block), write)
                self.advance((block + (number + 1) / len(self.batches)) / blocks)
            for each in (sums.fit, halves.fit, halves.held_out):
                streams.put(gram_name(block), each.gram)
            self.block_runner.trim_memory()

    @property
    def _device(self) -> torch.device:
        device: torch.device = self.block_runner.resolved.model.device
        return device

    def _get(self, name: str, index: int) -> torch.Tensor:
        self.capture()
        assert self.streams is not None
        try:
            values = self.streams.get(name, index)
        except DamagedStore as error:
            if self.cached is None:
                raise
            logger.warning("what an earlier job has left cannot be used (%s); the dense model is run again", error)
            self.cached.discard()
            self.complete = False
            self.capture()
            values = self.streams.get(name, index)
        return values.to(self._device)
