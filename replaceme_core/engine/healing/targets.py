"""What a pruned model is trained toward: the text, and for each of its tokens the original's likeliest next ones.

They are on disk, in files that are mapped into memory, so the original and the pruned model are never in memory
together. A sequence is written once it is complete: an attempt that ends early is continued where it ended.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from replaceme_core.engine.text.documents import documents, is_running_text
from replaceme_core.engine.text.drawing import TokenSet
from replaceme_core.engine.text.panel import REPEATED
from replaceme_core.engine.text.self_generated import generate_sequences
from replaceme_core.engine.text.tokens import encode, pack
from replaceme_core.errors import CalibrationTooSmall
from replaceme_core.request.calibration import MixedSource, errors_of
from replaceme_core.request.defaults import HEAL_GENERATED, HEAL_LIKELIEST, LOGITS_AT_ONCE
from replaceme_core.request.resolve import ResolvedSpec
from replaceme_core.wording import counted

READ_FOR_EACH = 2
"""Sequences read for each one that is used."""
PASSAGE = 24
"""Tokens. A document that shares a passage of this length with text that judges or measures is not trained on; of a
running text, whose documents are not known, a sequence."""
POSITIONS_AT_ONCE = 256
"""Whose logits are in float32 at a time."""
LEAST_REST = 1e-6
"""Probability of all other tokens, at least: the loss takes its logarithm."""


@dataclass(frozen=True, kw_only=True)
class Targets(Dataset[dict[str, torch.Tensor]]):
    """`tokens` (sequences, length); per position the `likeliest` next ones (sequences, length, n) with their
    `log_probabilities` in nats, and in `rest` (sequences, length) the logarithm of the probability of all others."""

    tokens: torch.Tensor
    likeliest: torch.Tensor
    log_probabilities: torch.Tensor
    rest: torch.Tensor

    @classmethod
    def at(cls, place: Path, *, sequences: int, length: int, likeliest: int) -> "Targets":
        """Those in the files in `place`, which are made where they do not exist."""
        shapes = {
            "tokens": ((sequences, length), torch.int32),
            "likeliest": ((sequences, length, likeliest), torch.int32),
            "log_probabilities": ((sequences, length, likeliest), torch.float16),
            "rest": ((sequences, length), torch.float16),
        }
        mapped = {
            name: torch.from_file(str(place / name), shared=True, size=math.prod(shape), dtype=dtype).view(shape)
            for name, (shape, dtype) in shapes.items()
        }
        return cls(**mapped)

    @property
    def length(self) -> int:
        """Tokens of a sequence."""
        return self.tokens.shape[1]

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        return {name: values[number] for name, values in vars(self).items()}


def loss_of(logits: torch.Tensor, targets: dict[str, torch.Tensor]) -> torch.Tensor:
    """The mean Kullback-Leibler divergence, in nats, of `logits` (sequences, length, vocabulary) from the targets.

    All tokens that are not among the likeliest are one class.
    """
    logits = logits.float()
    wanted, rest = targets["log_probabilities"].float(), targets["rest"].float()
    found = logits.gather(-1, targets["likeliest"].long()) - logits.logsumexp(-1, keepdim=True)
    found_rest = torch.log1p(-found.exp().sum(-1).clamp(max=1 - LEAST_REST))
    divergence = (wanted.exp() * (wanted - found)).sum(-1) + rest.exp() * (rest - found_rest)
    return divergence.mean()


@dataclass(frozen=True, kw_only=True)
class HealingText:
    """The `count` sequences of `length` tokens to train on: those `read` from texts, then those that are generated."""

    count: int
    length: int
    seed: int
    read: torch.Tensor

    @classmethod
    def of(
        cls,
        spec: ResolvedSpec,
        tokens: TokenSet,
        tokenizer: PreTrainedTokenizerBase,
        *,
        paths: Sequence[Path | None],
    ) -> "HealingText":
        """Read the text that the resolved `spec` names, if it does; `paths` has one for each of its texts.

        Else the sequences of the calibration that repeat passages, and the sources of its mix by their shares, as far
        as they go. What shares a `PASSAGE` with text of `tokens` that judges or measures is left out. Raises
        `CalibrationTooSmall` where a named text is too short.
        """
        assert spec.heal is not None
        length, seed = spec.calibration.max_length, spec.calibration.seed
        count, named = max(1, spec.heal.tokens // length), spec.heal.source
        reader = _Reader(tokenizer=tokenizer, length=length, seed=seed, apart_from=[tokens.held_out, tokens.measure])
        if named is not None:
            read = reader.read(named, paths[-1], count)
            if len(read) < count:
                raise CalibrationTooSmall(
                    f"{named.name} has {counted(read.numel(), 'tokens')} beside what judges or measures the result, "
                    f"and {count * length:,} are to be trained on: ask for fewer, or name a longer text",
                    field="heal.tokens",
                    value=count * length,
                )
            return cls(count=count, length=length, seed=seed, read=read)
        repeats = [number for number, name in enumerate(tokens.sources) if name == REPEATED]
        parts = [tokens.fit[torch.isin(tokens.fit_sources, torch.tensor(repeats, dtype=torch.long))]]
        for source, path in zip(spec.calibration.mix, paths, strict=False):
            if not source.self_generated and source.share > 0:
                parts.append(reader.read(source, path, math.ceil(source.share * count)))
        read = torch.cat(parts)
        order = torch.randperm(len(read), generator=torch.Generator().manual_seed(seed))
        return cls(count=count, length=length, seed=seed, read=read[order[:count]])

    def parts(self) -> Iterator[tuple[int, Callable[..., torch.Tensor]]]:
        """The parts in order, each with its number of sequences and what makes them.

        That is given the original model, its tokenizer and what to report progress to.
        """
        for some in self.read.split(HEAL_GENERATED):
            yield len(some), partial(_given, some)
        for start in range(len(self.read), self.count, HEAL_GENERATED):
            count = min(HEAL_GENERATED, self.count - start)
            # not the seeds of the calibration and the evaluation, which are the first two
            yield count, partial(generate_sequences, count=count, length=self.length, seed=self.seed + 2 + start)


def _given(some: torch.Tensor, model: object, tokenizer: object, **_: object) -> torch.Tensor:
    return some


class _Reader:
    """Reads sequences of texts that share no passage with those in `apart_from`."""

    def __init__(
        self, *, tokenizer: PreTrainedTokenizerBase, length: int, seed: int, apart_from: Sequence[torch.Tensor]
    ) -> None:
        self._tokenizer, self._length, self._seed = tokenizer, length, seed
        self._taken = {passage for tokens in apart_from for row in tokens.tolist() for passage in _passages(row)}

    def read(self, source: MixedSource, path: Path | None, count: int) -> torch.Tensor:
        """At most `count` sequences, of about twice as much text."""
        runs = is_running_text(path)
        with errors_of(source):
            encoded = encode(documents(source, path), self._tokenizer, template=source.template, running_text=runs)
            usable = (ids for ids in encoded if runs or self._taken.isdisjoint(_passages(ids)))
            found = pack(usable, self._tokenizer, length=self._length, limit=READ_FOR_EACH * count).sequences
        found = found[[self._taken.isdisjoint(_passages(row)) for row in found.tolist()]]
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(self._seed))
        return found[order[:count]]


def _passages(ids: Sequence[int]) -> Iterator[tuple[int, ...]]:
    return (tuple(ids[start : start + PASSAGE]) for start in range(len(ids) - PASSAGE + 1))


def write_targets(
    place: Path,
    text: HealingText,
    *,
    open_original: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: int,
    advance: Callable[[float], None],
) -> Targets:
    """The targets of `text` in the directory `place`, which may have a part of them; only then the model is opened."""
    count = min(HEAL_LIKELIEST, vocabulary)
    targets = Targets.at(place, sequences=text.count, length=text.length, likeliest=count)
    progress = place / "written"
    done = int(progress.read_text()) if progress.exists() else 0
    model, start = None, 0
    for size, make in text.parts():
        end = start + size
        if end > done:
            model = open_original() if model is None else model

            def half(before: float, part: float, *, start: int = start, size: int = size) -> None:
                advance((start + size * (before + part / 2)) / text.count)

            targets.tokens[start:end] = make(model, tokenizer, advance=partial(half, 0.0)).int()
            _write(targets, range(start, end), model, advance=partial(half, 0.5))
            write_whole(progress, str(end))
        start = end
        advance(end / text.count)
    return targets


def write_whole(path: Path, text: str) -> None:
    """Write a file that is complete wherever it exists."""
    draft = path.with_suffix(".draft")
    draft.write_text(text)
    draft.replace(path)


@torch.inference_mode()
def _write(targets: Targets, rows: range, model: PreTrainedModel, *, advance: Callable[[float], None]) -> None:
    """The likeliest tokens after each position of the sequences `rows`."""
    likeliest = targets.likeliest.shape[-1]
    at_once = max(1, LOGITS_AT_ONCE // (targets.tokens.shape[1] * model.config.get_text_config().vocab_size))
    for start in range(rows.start, rows.stop, at_once):
        end = min(start + at_once, rows.stop)
        tokens = targets.tokens[start:end].long().to(model.device)
        logits = model(input_ids=tokens, use_cache=False).logits
        for first in range(0, tokens.shape[1], POSITIONS_AT_ONCE):
            span = slice(first, first + POSITIONS_AT_ONCE)
            known = logits[:, span].float().log_softmax(-1)
            values, indices = known.topk(likeliest, dim=-1)
            targets.likeliest[start:end, span] = indices.int().cpu()
            targets.log_probabilities[start:end, span] = values.half().cpu()
            rest = (1 - values.double().exp().sum(-1)).clamp(min=LEAST_REST).log()
            targets.rest[start:end, span] = rest.half().cpu()
        advance((end - rows.start) / len(rows))
