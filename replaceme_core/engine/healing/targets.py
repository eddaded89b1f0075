"""What a pruned model is trained toward: the text, and for each of its tokens the original's likeliest next ones.

They are on disk, in files that are mapped into memory, so the original and the pruned model are never in memory
together. A sequence is written once it is complete: an attempt that ends early is continued where it ended.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from replaceme_core.engine.activations.verified_file import content_digest
from replaceme_core.engine.methods.task import Task
from replaceme_core.engine.model.load import load_config
from replaceme_core.engine.results.checkpoint import checkpoint_key
from replaceme_core.engine.run import Run
from replaceme_core.engine.text.documents import documents, is_running_text
from replaceme_core.engine.text.panel import REPEATED
from replaceme_core.engine.text.self_generated import generate_sequences, openings
from replaceme_core.engine.text.tokens import encode, pack
from replaceme_core.errors import BrokenModel, CalibrationTooSmall, InvalidInput
from replaceme_core.families.resolve import part_config
from replaceme_core.hub.files import write_atomically
from replaceme_core.request.calibration import MixedSource, errors_of
from replaceme_core.request.defaults import HEAL_GENERATED, HEAL_LIKELIEST, LOGITS_AT_ONCE
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
class Targets(Dataset[dict[str, object]]):
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

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, number: int) -> dict[str, object]:
        """What the model reads, and the arguments of `loss_of` after its logits."""
        labels = self.likeliest[number], self.log_probabilities[number], self.rest[number]
        return {"input_ids": self.tokens[number].long(), "labels": labels}


def loss_of(
    logits: torch.Tensor, likeliest: torch.Tensor, log_probabilities: torch.Tensor, rest: torch.Tensor
) -> torch.Tensor:
    """The mean Kullback-Leibler divergence, in nats, of `logits` (sequences, length, vocabulary) from the targets.

    All tokens that are not among the likeliest are one class.
    """
    logits = logits.float()
    wanted, rest = log_probabilities.float(), rest.float()
    found = logits.gather(-1, likeliest.long()) - logits.logsumexp(-1, keepdim=True)
    found_rest = torch.log1p(-found.exp().sum(-1).clamp(max=1 - LEAST_REST))
    divergence = (wanted.exp() * (wanted - found)).sum(-1) + rest.exp() * (rest - found_rest)
    return divergence.mean()


def require_training() -> None:
    """Raise `InvalidInput` where the library that trains is not installed."""
    if find_spec("accelerate") is None:
        raise InvalidInput(
            "healing needs a library that this worker does not have (accelerate); install it with: "
            "pip install 'replaceme[heal]'",
            field="heal",
        )


@dataclass(frozen=True, kw_only=True)
class HealingText:
    """The `count` sequences of `length` tokens to train on: those `read` from texts, then those that are generated.

    `key` is that of all that they follow from.
    """

    count: int
    length: int
    seed: int
    read: torch.Tensor
    key: str

    @classmethod
    def of(cls, task: Task, tokenizer: PreTrainedTokenizerBase, *, paths: Sequence[Path | None]) -> "HealingText":
        """Read the text that the specification of `task` names, if it does; `paths` has one for each of its texts.

        Else the sequences of the calibration that repeat passages, and the sources of its mix by their shares, as far
        as they go. What shares a `PASSAGE` with text of `task` that judges or measures is left out; the words with
        which the chat template begins every conversation are not shared text. Raises `CalibrationTooSmall` where a
        named text is too short.
        """
        spec, tokens = task.spec, task.tokens
        assert spec.heal is not None
        length, seed = spec.calibration.max_length, spec.calibration.seed
        count, named = max(1, spec.heal.tokens // length), spec.heal.source
        opening = _opening(tokenizer)
        rows = [*tokens.held_out.tolist(), *tokens.measure.tolist()]
        taken = {passage for row in rows for passage in _passages(row, opening)}

        def is_free(ids: Sequence[int]) -> bool:
            return taken.isdisjoint(_passages(ids, opening))

        def read(source: MixedSource, path: Path | None, most: int) -> torch.Tensor:
            """At most that many sequences that have none of the passages `taken`, of about twice as much text."""
            runs = is_running_text(path)
            with errors_of(source):
                encoded = encode(documents(source, path), tokenizer, template=source.template, running_text=runs)
                usable = (ids for ids in encoded if runs or is_free(ids))
                found = pack(usable, tokenizer, length=length, limit=READ_FOR_EACH * most).sequences
            return _shuffled(found[[is_free(row) for row in found.tolist()]], seed)[:most]

        if named is not None:
            found = read(named, paths[-1], count)
            if len(found) < count:
                raise CalibrationTooSmall(
                    f"{named.name} has {counted(found.numel(), 'tokens')} beside what judges or measures the result, "
                    f"and {count * length:,} are to be trained on: ask for fewer, or name a longer text",
                    field="heal.tokens",
                    value=count * length,
                )
        else:
            repeats = torch.tensor([name == REPEATED for name in tokens.sources])
            parts = [tokens.fit[repeats[tokens.fit_sources]]]
            for source, path in zip(spec.calibration.mix, paths, strict=False):
                if not source.self_generated and source.share > 0:
                    parts.append(read(source, path, math.ceil(source.share * count)))
            found = _shuffled(torch.cat(parts), seed)[:count]
        key = content_digest(checkpoint_key(task), {"read": found})
        return cls(count=count, length=length, seed=seed, read=found, key=key)

    def parts(self) -> Iterator[range]:
        """The numbers of the sequences that are made together, in order: read ones, then generated ones."""
        for start, end in ((0, len(self.read)), (len(self.read), self.count)):
            for first in range(start, end, HEAL_GENERATED):
                yield range(first, min(first + HEAL_GENERATED, end))


def _shuffled(rows: torch.Tensor, seed: int) -> torch.Tensor:
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]


def _opening(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """What the chat template puts before the first words of a conversation; nothing without a usable template."""
    with suppress(BrokenModel):
        return next(iter(openings(tokenizer).turns), ())
    return ()


def _passages(ids: Sequence[int], opening: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Those of `ids` without each `opening` in them."""
    own, place = list[int](), 0
    while place < len(ids):
        if opening and tuple(ids[place : place + len(opening)]) == opening:
            place += len(opening)
        else:
            own.append(ids[place])
            place += 1
    return (tuple(own[start : start + PASSAGE]) for start in range(len(own) - PASSAGE + 1))


def original_of(run: Run) -> PreTrainedModel:
    """The original model, which `run` holds from then on."""
    if run.model is None:
        run.model = run.load(run.source)
    return run.model


def write_targets(place: Path, text: HealingText, run: Run, *, advance: Callable[[float], None]) -> Targets:
    """The targets of `text` in the directory `place`, which may have a part of them; only then the model is opened."""
    assert run.tokenizer is not None
    count = min(HEAL_LIKELIEST, part_config(load_config(run.source)).vocab_size)
    targets = Targets.at(place, sequences=text.count, length=text.length, likeliest=count)
    progress = place / "written"
    done = int(progress.read_text()) if progress.exists() else 0
    for rows in text.parts():
        if rows.stop > done:
            model = original_of(run)

            def half(before: float, part: float, *, rows: range = rows) -> None:
                advance((rows.start + len(rows) * (before + part / 2)) / text.count)

            if rows.start < len(text.read):
                made = text.read[rows.start : rows.stop]
            else:
                made = generate_sequences(
                    model,
                    run.tokenizer,
                    count=len(rows),
                    length=text.length,
                    # not the seeds of the calibration and the evaluation, which are the first two
                    seed=text.seed + 2 + rows.start,
                    advance=partial(half, 0.0),
                )
            targets.tokens[rows.start : rows.stop] = made.int()
            _write(targets, rows, model, advance=partial(half, 0.5))
            for name in vars(targets):  # after a power failure, what counts as written is there
                with (place / name).open("rb") as file:
                    os.fsync(file.fileno())
            write_atomically(progress, str(rows.stop))
        advance(rows.stop / text.count)
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
