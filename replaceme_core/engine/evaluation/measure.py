"""Perplexity and size of models, with the same settings for the dense and the pruned one; and how sure a mean is."""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from replaceme_core.engine.activations.cache import tensor_digest
from replaceme_core.engine.activations.verified_file import Contents
from replaceme_core.engine.evaluation.dense_results import DenseResults
from replaceme_core.engine.evaluation.speed import ImageSpeed, Speed
from replaceme_core.engine.model.block_runner import BlockRunner, Hook, Stop, record_values
from replaceme_core.engine.model.device import synchronise
from replaceme_core.engine.text.tokens import check_ids
from replaceme_core.errors import NumericalFailure
from replaceme_core.families.layout import FAMILIES
from replaceme_core.families.resolve import part_config, resolve
from replaceme_core.hub.model_files import weight_files
from replaceme_core.request.defaults import LOGITS_AT_ONCE

# of Student's t for 1, 2, 3 ... degrees of freedom, 95 percent between both sides
_QUANTILES = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
_NORMAL = 1.959964


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 percent confidence interval of the mean, by Student's t; `None` for fewer than three values:
    that of two is so wide that it is of no use.

    >>> low, high = mean_interval([1.0, 2.0, 3.0])
    >>> round(low, 3), round(high, 3)
    (-0.484, 4.484)
    """
    count = len(values)
    if count < 3:
        return None
    half = quantile(count - 1) * statistics.stdev(values) / math.sqrt(count)
    mean = statistics.fmean(values)
    return mean - half, mean + half


def share_interval(share: float, count: int) -> tuple[float, float]:
    """The 95 percent confidence interval of a `share` of `count` cases (1 or more), by Wilson's score.

    Unlike one from a standard error, it has a width where all cases are alike.

    >>> low, high = share_interval(0.0, 6)
    >>> round(low, 3), round(high, 3)
    (0.0, 0.39)
    """
    spread = _NORMAL**2 / count
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(spread * (share * (1 - share) + spread / 4)) / (1 + spread)
    return max(0.0, min(middle - half, share)), min(1.0, max(middle + half, share))  # rounding leaves the share inside


def quantile(degrees: int) -> float:
    """The 97.5 percent quantile of Student's t."""
    if degrees <= len(_QUANTILES):
        return _QUANTILES[degrees - 1]
    z = _NORMAL  # the expansion of Fisher and Cornish, exact to four digits from here on
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)


DIVERGENCE_AT_ONCE = 256
"""Predictions whose whole distributions are compared at a time."""
TIMED = 3
"""Batches of a text that are run for their speed though their results are known."""
SOURCE, PRUNED = "the source model", "the pruned model"
LARGEST_LOSS = 700.0
"""Nats for each prediction: exp of more is infinite in float64."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Of any model: `parameters` with tied ones counted once; `bytes` of weights on disk.

    `speed` is `None` where it was not measured.
    """

    parameters: int
    bytes: int
    dtype: str
    blocks: int
    speed: Speed | ImageSpeed | None = None

    @classmethod
    def of(cls, subject: "Subject") -> "Measured":
        """What needs no pass."""
        return Measured(
            parameters=sum(parameter.numel() for parameter in subject.model.parameters()),
            bytes=sum(path.stat().st_size for path in weight_files(subject.directory)),
            dtype=str(subject.model.dtype).removeprefix("torch."),
            blocks=part_config(subject.model.config).num_hidden_layers,
        )


@dataclass(frozen=True, kw_only=True)
class Measurement(Measured):
    """Of a language model: `perplexity` over `tokens` predictions.

    `tokens_per_second` is of forward passes with all logits. `word_perplexity` and `byte_perplexity` are of the same
    text over its words and bytes, which do not depend on the tokenizer; `None` where the text was not counted, or the
    value is not finite. `speed` is `None` where it was not measured.
    """

    perplexity: float
    tokens: int
    tokens_per_second: float
    word_perplexity: float | None = None
    byte_perplexity: float | None = None


@dataclass(frozen=True, kw_only=True)
class TextSize:
    """Of the text of predicted tokens: words between white space, bytes in UTF-8."""

    words: int
    bytes: int

    @classmethod
    def of(cls, sequences: torch.Tensor, tokenizer: PreTrainedTokenizerBase) -> "TextSize":
        """Of all tokens but the first of each sequence; special ones are no text."""
        texts = [str(tokenizer.decode(row, skip_special_tokens=True)) for row in sequences[:, 1:].tolist()]
        return cls(
            words=sum(len(text.split()) for text in texts),
            bytes=sum(len(text.encode(errors="replace")) for text in texts),
        )


@dataclass(kw_only=True)
class Subject:
    """A model to measure on a text, with the loss of each sequence in nats and its tokens per second so far. Its size
    is that of the weights in `directory`.

    `name` is for messages. `results` are what is kept of a dense model: its streams behind the last block, from which
    logits follow without any block.
    """

    name: str
    model: PreTrainedModel
    directory: Path
    kept: Sequence[int] = ()
    """Of a pruned model, which blocks of the source model it has."""
    results: DenseResults = field(default_factory=DenseResults)
    losses: list[float] = field(default_factory=list)
    speeds: list[float] = field(default_factory=list)
    seconds: float = 0.0
    """That the present batch has taken."""

    @cached_property
    def runner(self) -> BlockRunner | None:
        """`None` for a type that is not compressed: its logits are made all at once."""
        return BlockRunner(resolved=resolve(self.model)) if self.model.config.model_type in FAMILIES else None

    @contextmanager
    def streams(self, batches: Sequence[torch.Tensor]) -> Iterator[dict[str, torch.Tensor] | None]:
        """Those behind the last block for `batches` of token ids (sequences, length), by the number of the batch.

        Without those of an earlier pass it is empty, and what is put into it is kept at the end; `None`: none are kept.
        """
        size = sum(batch.numel() for batch in batches) * part_config(self.model.config).hidden_size
        if self.runner is None or not self.results.has_room(size * self.model.dtype.itemsize):
            yield None
            return
        asked = {"tokens": [tensor_digest(batch) for batch in batches]}
        found = self.results.find("text", asked)
        streams = {} if found is None else dict(found.tensors)
        yield streams
        if found is None:
            self.results.keep("text", asked, Contents(record={}, tensors=streams))

    def stored(self, number: int, streams: Mapping[str, torch.Tensor] | None) -> torch.Tensor | None:
        """The stream for the batch of this number; `None` where the model has to run for it.

        The first `TIMED` batches run in any case, since speed belongs to this run.
        """
        if not streams or len(self.speeds) < min(TIMED, len(streams)):
            return None
        return streams.get(str(number))

    def stream(self, batch: torch.Tensor) -> torch.Tensor:
        """Behind the last block, for `batch` (sequences, length); the logits where blocks are not known."""
        if self.runner is None:
            logits: torch.Tensor = self.model(input_ids=batch, use_cache=False).logits
            return logits
        with record_values(Hook(module=self.runner.blocks[-1]), stop=True) as seen, suppress(Stop):
            self.model(input_ids=batch, use_cache=False)
        return seen[0]

    def logits(self, part: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Those (predictions, vocabulary) after tokens `ids` (predictions,), from their `part` of a stream."""
        return part if self.runner is None else self.runner.leave(part.unsqueeze(0), ids.unsqueeze(0)).flatten(0, 1)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Adds to `seconds`."""
        begin = time.perf_counter()
        yield
        synchronise(self.model.device)
        self.seconds += time.perf_counter() - begin

    def result(self, predictions: int, size: TextSize | None) -> Measurement:
        """The measurement after `predictions` predicted tokens, whose text has this `size`.

        Raises `NumericalFailure` where the perplexity is NaN or infinite, which says nothing and is not in JSON.
        """
        total = math.fsum(self.losses)
        loss, dtype = total / predictions, str(self.model.dtype).removeprefix("torch.")
        if not loss < LARGEST_LOSS:
            raise NumericalFailure(
                f"the perplexity of {self.name} is {'infinite' if loss > 0 else 'not a number'} in {dtype}: its logits "
                "overflow or are not numbers; compute in float32 (compute.dtype), or check the weights of the model"
            )
        return Measurement(
            perplexity=math.exp(loss),
            tokens=predictions,
            tokens_per_second=statistics.median(self.speeds),
            **vars(Measured.of(self)),
            word_perplexity=None if size is None else _perplexity_over(total, size.words),
            byte_perplexity=None if size is None else _perplexity_over(total, size.bytes),
        )


@dataclass(kw_only=True)
class Divergence:
    """How the predictions of one model differ from those of another, over `tokens` predictions so far."""

    nats: float = 0.0
    same: int = 0
    tokens: int = 0

    def add(self, old: torch.Tensor, new: torch.Tensor) -> None:
        """Logits (n, vocabulary) of both models for the same tokens."""
        for before, after in zip(old.split(DIVERGENCE_AT_ONCE), new.split(DIVERGENCE_AT_ONCE), strict=True):
            wanted, found = before.float().log_softmax(-1), after.float().log_softmax(-1)
            self.nats += float(torch.nn.functional.kl_div(found, wanted, reduction="sum", log_target=True))
            self.same += int((wanted.argmax(-1) == found.argmax(-1)).sum())
        self.tokens += len(old)

    @property
    def mean_nats(self) -> float:
        """Mean Kullback-Leibler divergence of the new model's next-token distribution from the old one's."""
        return self.nats / self.tokens

    @property
    def agreement(self) -> float:
        """Share of predictions whose most likely token is the same, 0 to 1."""
        return self.same / self.tokens


@torch.inference_mode()
def measure(
    subjects: Sequence[Subject],
    sequences: torch.Tensor,
    *,
    size: TextSize | None = None,
    divergence: Divergence | None = None,
    advance: Callable[[float], None] | None = None,
) -> list[Measurement]:
    """Measure `subjects` on `sequences` (sequences, length): all tokens but the first of each are predicted.

    Each batch runs on all subjects before the next, so that a machine that slows down affects all alike. Logits are
    made in parts. Speed is the median over batches of whole passes with all logits, after one warm-up pass.
    `divergence` gets the predictions of the first two subjects, `size` is that of the text. What is kept of a subject
    is used. Raises `InvalidInput` as `check_ids`, and `NumericalFailure`.
    """
    vocabularies = [part_config(subject.model.config).vocab_size for subject in subjects]
    check_ids(int(sequences.max()), min(vocabularies))
    length = sequences.shape[1]
    batches = sequences.split(max(1, LOGITS_AT_ONCE // (length * max(vocabularies))))
    with ExitStack() as stack:
        kept = [stack.enter_context(subject.streams(batches)) for subject in subjects]
        for subject, streams in zip(subjects, kept, strict=True):
            if subject.stored(0, streams) is None:
                subject.stream(batches[0][:1].to(subject.model.device))
        for number, batch in enumerate(batches):
            _measure_batch(subjects, kept, number, batch, divergence=divergence)
            if advance is not None:
                advance((number + 1) / len(batches))
    predictions = sequences.shape[0] * (length - 1)
    return [subject.result(predictions, size) for subject in subjects]


def _measure_batch(
    subjects: Sequence[Subject],
    kept: Sequence[dict[str, torch.Tensor] | None],
    number: int,
    batch: torch.Tensor,
    *,
    divergence: Divergence | None,
) -> None:
    """Add what all subjects predict for the batch of this `number`, with logits for some positions at a time."""
    runners = [subject.runner for subject in subjects if subject.runner is not None]
    positions = min((runner.positions_at_once for runner in runners), default=batch.numel())
    before, stored = [], [subject.stored(number, streams) for subject, streams in zip(subjects, kept, strict=True)]
    for subject, streams, known in zip(subjects, kept, stored, strict=True):
        subject.seconds = 0.0
        if known is not None:
            stream = known.to(subject.model.device)
        else:
            with subject.timed():
                stream = subject.stream(batch.to(subject.model.device))
            if streams is not None:
                streams[str(number)] = stream.cpu()
        before.append(stream[:, :-1].flatten(0, 1).split(positions))
    losses: list[list[torch.Tensor]] = [[] for _ in subjects]
    read, following = (ids.flatten().split(positions) for ids in (batch[:, :-1], batch[:, 1:]))
    for place, (ids, wanted) in enumerate(zip(read, following, strict=True)):
        logits = []
        for subject, parts, own in zip(subjects, before, losses, strict=True):
            device = parts[place].device
            with subject.timed():
                found = subject.logits(parts[place], ids.to(device))
            own.append(torch.nn.functional.cross_entropy(found.float(), wanted.to(device), reduction="none").double())
            logits.append(found)
        if divergence is not None:
            divergence.add(logits[0], logits[1])
    for subject, own, known in zip(subjects, losses, stored, strict=True):
        subject.losses += torch.cat(own).view(len(batch), -1).sum(1).tolist()
        if known is None:
            subject.speeds.append(batch.numel() / subject.seconds)


def _perplexity_over(nats: float, count: int) -> float | None:
    """Of a text with `count` words or bytes."""
    return math.exp(nats / count) if count and nats / count < LARGEST_LOSS else None
