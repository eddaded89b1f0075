"""Documents into token sequences of one length, packed full, so that no padding ever enters a sum."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from replaceme_core.calibration.sources import Document
from replaceme_core.errors import CalibrationTooSmall, InvalidInput

POOL_FACTOR = 8
"""Sequences read for each one wanted: the choice is spread over the text, and a huge data set is not read whole."""


@dataclass(frozen=True, kw_only=True)
class TokenSet:
    """Token ids: `fit` and `held_out` (sequences, length) calibrate, `measure` (sequences, length) evaluates."""

    fit: torch.Tensor
    held_out: torch.Tensor
    measure: torch.Tensor


def encode(
    documents: Iterable[Document],
    tokenizer: PreTrainedTokenizerBase,
    *,
    template: str = "auto",
    running_text: bool = False,
) -> Iterator[list[int]]:
    """Token ids of each document. `template`: "auto", "chat" or "plain".

    Each is ended by the end-of-text token, unless they are the paragraphs of one `running_text`. Conversations go
    through the tokenizer's chat template where it has one; base models have none and take plain text.
    """
    has_template = tokenizer.chat_template is not None
    if template == "chat" and not has_template:
        raise InvalidInput(
            "the model's tokenizer has no chat template; use template plain or auto",
            field="calibration.template",
            value=template,
        )
    ends = isinstance(tokenizer.eos_token_id, int) and not running_text
    end = [tokenizer.eos_token_id] if ends else []
    for document in documents:
        if isinstance(document, str):
            text = document
        elif has_template and template != "plain":
            text = str(tokenizer.apply_chat_template(document, tokenize=False))
        else:
            text = "\n\n".join(turn["content"] for turn in document)
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        yield [*ids, *end]


@dataclass(frozen=True, kw_only=True)
class Packed:
    """Full `sequences` (sequences, length), and how many `tokens` were read for them."""

    sequences: torch.Tensor
    tokens: int


def pack(encoded: Iterable[list[int]], tokenizer: PreTrainedTokenizerBase, *, length: int, limit: int) -> Packed:
    """At most `limit` full sequences; what is left over at the end is cut off.

    Each begins with the beginning-of-text token if this tokenizer adds one, as the model saw in training.
    """
    prefix = beginning_of_text(tokenizer)
    body = length - len(prefix)
    rows: list[list[int]] = []
    pending: list[int] = []
    tokens = 0
    for ids in encoded:
        tokens += len(ids)
        pending.extend(ids)
        cut = 0
        while len(pending) - cut >= body and len(rows) < limit:
            rows.append([*prefix, *pending[cut : cut + body]])
            cut += body
        del pending[:cut]
        if len(rows) >= limit:
            break
    return Packed(sequences=torch.tensor(rows, dtype=torch.long).reshape(-1, length), tokens=tokens)


def beginning_of_text(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The beginning-of-text token where this tokenizer puts it before a text, else nothing."""
    ids = tokenizer("a", verbose=False)["input_ids"]
    return [ids[0]] if ids and ids[0] == tokenizer.bos_token_id else []


def draw(packed: Packed, *, samples: int, held_out: int, measure: int, seed: int) -> TokenSet:
    """Disjoint sets: `samples` for calibration, of which `held_out` are for selection, then `measure` of the others.

    Calibration takes one sequence at random out of each of `samples` equal parts of the text, so that it meets every
    part of it and is the same whether something is measured or not. Raises `CalibrationTooSmall`, saying how many
    tokens there are and are needed. Of the `measure` sequences at least one must be there; fewer than asked for are
    taken as they are.
    """
    available, length = packed.sequences.shape
    spare = min(measure, 1)
    if available < samples + spare:
        also = f" and {length} more to evaluate on" if measure else ""
        possible = available - spare
        advice = f", or ask for at most {possible} samples" if possible >= 2 else ""
        raise CalibrationTooSmall(
            f"the calibration text has {packed.tokens} tokens, which fill {available} sequences of {length}; "
            f"{samples} x {length} = {samples * length} are needed{also}: give more text{advice}",
            field="calibration.samples",
            value=samples,
        )
    generator = torch.Generator().manual_seed(seed)
    pool = min(available, POOL_FACTOR * samples)
    edges = [*(part * pool // samples for part in range(samples)), pool]
    chosen = [
        start + int(torch.randint(end - start, (), generator=generator)) for start, end in itertools.pairwise(edges)
    ]
    # Every so many parts one is held out: neighbours in the text are alike, and a judge must not know what it judges.
    judges = {(2 * number + 1) * samples // (2 * held_out) for number in range(held_out)}
    taken = set(chosen)

    def shuffled(indices: list[int], *, most: int | None = None) -> torch.Tensor:
        order = torch.randperm(len(indices), generator=generator)[:most]
        return packed.sequences[torch.tensor(indices, dtype=torch.long)[order]]

    return TokenSet(
        fit=shuffled([index for part, index in enumerate(chosen) if part not in judges]),
        held_out=shuffled([index for part, index in enumerate(chosen) if part in judges]),
        measure=shuffled([index for index in range(available) if index not in taken], most=measure),
    )
