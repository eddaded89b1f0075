"""Pack documents into full token sequences of one length, so that no padding enters the sums."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Self

import torch
from transformers import PreTrainedTokenizerBase

from replaceme_core.calibration.document import Document
from replaceme_core.errors import CalibrationTooSmall, InvalidInput

POOL_FACTOR = 8
"""Sequences read for each one that is used: samples are spread over the text without reading a huge data set whole."""


@dataclass(frozen=True, kw_only=True)
class TokenSet:
    """Token ids, (sequences, length) each: `fit` and `held_out` for calibration, `measure` for the evaluation.

    `sources` are the names of what they come from; `fit_sources`, `held_out_sources` and `measure_sources` are indices
    into these, int64 (sequences,). `measure` begins with the sequences of the first text.
    """

    fit: torch.Tensor
    held_out: torch.Tensor
    measure: torch.Tensor
    sources: tuple[str, ...]
    fit_sources: torch.Tensor
    held_out_sources: torch.Tensor
    measure_sources: torch.Tensor

    def __post_init__(self) -> None:
        for tokens, sources in (
            (self.fit, self.fit_sources),
            (self.held_out, self.held_out_sources),
            (self.measure, self.measure_sources),
        ):
            assert sources.shape == tokens.shape[:1], "each sequence has a source"

    @classmethod
    def of_one_source(
        cls, *, fit: torch.Tensor, held_out: torch.Tensor, measure: torch.Tensor, name: str = "text"
    ) -> Self:
        """All sequences are of the source `name`."""
        fit_sources, held_out_sources, measure_sources = (
            torch.zeros(len(tokens), dtype=torch.long) for tokens in (fit, held_out, measure)
        )
        return cls(
            fit=fit,
            held_out=held_out,
            measure=measure,
            sources=(name,),
            fit_sources=fit_sources,
            held_out_sources=held_out_sources,
            measure_sources=measure_sources,
        )

    def first(self, *, fit: int, held_out: int) -> Self:
        """The same with only the first `fit` and `held_out` sequences."""
        return replace(
            self,
            fit=self.fit[:fit],
            held_out=self.held_out[:held_out],
            fit_sources=self.fit_sources[:fit],
            held_out_sources=self.held_out_sources[:held_out],
        )

    def measure_of_first_text(self) -> torch.Tensor:
        """The sequences of the first text that measure the result, (sequences, length)."""
        return self.measure[self.measure_sources == self.measure_sources[:1]]


def encode(
    documents: Iterable[Document],
    tokenizer: PreTrainedTokenizerBase,
    *,
    template: str = "auto",
    running_text: bool = False,
) -> Iterator[list[int]]:
    """Token ids of each document. `template`: "auto", "chat" or "plain".

    The end-of-text token follows each, unless they are the paragraphs of one `running_text`. Conversations go through
    the chat template of the tokenizer; where it has none, as in base models, they become plain text.
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
    """Full `sequences` (sequences, length), and the number of `tokens` that were read for them."""

    sequences: torch.Tensor
    tokens: int


def pack(encoded: Iterable[list[int]], tokenizer: PreTrainedTokenizerBase, *, length: int, limit: int) -> Packed:
    """At most `limit` full sequences; tokens that do not fill the last one are dropped.

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


def draw(packed: Packed, *, samples: int, held_out: int, measure: int, seed: int, called: str = "") -> TokenSet:
    """Disjoint sets: `samples` for calibration, of which `held_out` are for selection, then `measure` of the others.

    One sequence is drawn from each of `samples` equal parts of the text, so that calibration covers all of it and does
    not depend on `measure` (docs/decisions/0024-one-sequence-from-each-part.md). Of the `measure` sequences at least
    one must exist; there may be fewer than asked for. Raises `CalibrationTooSmall` with the number of tokens that are
    needed; `called` is put after "the calibration text".
    """
    available, length = packed.sequences.shape
    spare = min(measure, 1)
    if available < samples + spare:
        also = f" and {length} more to evaluate on" if measure else ""
        possible = available - spare
        advice = f", or ask for at most {possible} samples" if possible >= 2 else ""
        raise CalibrationTooSmall(
            f"the calibration text{called} has {packed.tokens} tokens, which fill {available} sequences of {length}; "
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
    # Neighbouring sequences are alike, so held-out sequences come from parts of their own, spread over the text.
    held_out_parts = {(2 * number + 1) * samples // (2 * held_out) for number in range(held_out)}
    taken = set(chosen)

    def shuffled(indices: list[int], *, most: int | None = None) -> torch.Tensor:
        order = torch.randperm(len(indices), generator=generator)[:most]
        return packed.sequences[torch.tensor(indices, dtype=torch.long)[order]]

    return TokenSet.of_one_source(
        fit=shuffled([index for part, index in enumerate(chosen) if part not in held_out_parts]),
        held_out=shuffled([index for part, index in enumerate(chosen) if part in held_out_parts]),
        measure=shuffled([index for index in range(available) if index not in taken], most=measure),
    )
