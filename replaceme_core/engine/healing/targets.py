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
from replaceme_core.engine.text.self_generated import generate_sequences
from replaceme_core.engine.text.tokens import encode, pack
from replaceme_core.errors import CalibrationTooSmall
from replaceme_core.request.calibration import MixedSource, errors_of
from replaceme_core.request.defaults import HEAL_LIKELIEST, LOGITS_AT_ONCE
from replaceme_core.request.resolve import ResolvedSpec
from replaceme_core.wording import counted

READ_FOR_EACH = 2
"""Sequences read for each one that is used."""
PASSAGE = 24
"""Tokens. A document that shares a passage of this length with text that judges or measures is not trained on; of a
running text, whose documents are not known, a sequence."""
GENERATED_AT_ONCE = 64
"""Sequences that are generated, and written, together."""
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


@dataclass(kw_only=True)
class HealingText:
    """The sequences to train on: those of a text, or of the calibration and then what the original generates."""

    count: int
    length: int
    seed: int
    read: torch.Tensor | None = None
    """The sequences (count, length) of a named text; `None` where none is named."""

    @classmethod
    def of(
        cls, spec: ResolvedSpec, tokens: TokenSet, tokenizer: PreTrainedTokenizerBase, *, path: Path | None
    ) -> "HealingText":
        """Read the text that the resolved `spec` names, if it does; `path` is where it lies.

        What shares a `PASSAGE` with text of `tokens` that judges or measures is left out. Raises `CalibrationTooSmall`
        where the rest is too short.
        """
        assert spec.heal is not None
        length = spec.calibration.max_length
        found = cls(count=max(1, spec.heal.tokens // length), length=length, seed=spec.calibration.seed)
        source = spec.heal.source
        if source is not None:
            with errors_of(source):
                found.read = _read(source, path, tokenizer, found, apart_from=[tokens.held_out, tokens.measure])
        return found

    def parts(self, fitted: torch.Tensor) -> Iterator[tuple[int, Callable[..., torch.Tensor]]]:
        """The parts in order, each with its number of sequences and what makes them.

        `fitted` (sequences, length) are those of the calibration. What makes a part is given the original model, its
        tokenizer and what to report progress to.
        """
        given = self.read if self.read is not None else fitted[: self.count]
        for some in given.split(GENERATED_AT_ONCE):
            yield len(some), partial(_given, some)
        for start in range(len(given), self.count, GENERATED_AT_ONCE):
            count = min(GENERATED_AT_ONCE, self.count - start)
            # not the seeds of the calibration and the evaluation, which are the first two
            yield count, partial(generate_sequences, count=count, length=self.length, seed=self.seed + 2 + start)


def _given(some: torch.Tensor, model: object, tokenizer: object, **_: object) -> torch.Tensor:
    return some


def _read(
    source: MixedSource,
    path: Path | None,
    tokenizer: PreTrainedTokenizerBase,
    text: HealingText,
    *,
    apart_from: Sequence[torch.Tensor],
) -> torch.Tensor:
    taken = {passage for tokens in apart_from for row in tokens.tolist() for passage in _passages(row)}
    runs = is_running_text(path)
    encoded = encode(documents(source, path), tokenizer, template=source.template, running_text=runs)
    usable = (ids for ids in encoded if runs or taken.isdisjoint(_passages(ids)))
    packed = pack(usable, tokenizer, length=text.length, limit=READ_FOR_EACH * text.count).sequences
    packed = packed[[taken.isdisjoint(_passages(row)) for row in packed.tolist()]]
    if len(packed) < text.count:
        raise CalibrationTooSmall(
            f"{source.name} has {counted(packed.numel(), 'tokens')} beside what judges or measures the result, and "
            f"{text.count * text.length:,} are to be trained on: ask for fewer, or name a longer text",
            field="heal.tokens",
            value=text.count * text.length,
        )
    order = torch.randperm(len(packed), generator=torch.Generator().manual_seed(text.seed))
    return packed[order[: text.count]]


def _passages(ids: Sequence[int]) -> Iterator[tuple[int, ...]]:
    return (tuple(ids[start : start + PASSAGE]) for start in range(len(ids) - PASSAGE + 1))


def write_targets(
    place: Path,
    text: HealingText,
    *,
    fitted: torch.Tensor,
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
    for size, make in text.parts(fitted):
        end = start + size
        if end > done:
            model = open_original() if model is None else model

            def half(before: float, part: float, *, start: int = start, size: int = size) -> None:
                advance((start + size * (before + part / 2)) / text.count)

            targets.tokens[start:end] = make(model, tokenizer, advance=partial(half, 0.0)).int()
            _write(targets, range(start, end), model, advance=partial(half, 0.5))
            draft = progress.with_suffix(".draft")
            draft.write_text(str(end))
            draft.replace(progress)
        start = end
        advance(end / text.count)
    return targets


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
