"""Pack documents into full token sequences of one length, so that no padding enters the sums."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Self

import torch
from transformers import PreTrainedTokenizerBase

from replaceme_core.engine.text.chat_template import render
from replaceme_core.engine.text.document import Document
from replaceme_core.errors import InvalidInput
from replaceme_core.library_errors import library_errors


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
            text = render(tokenizer, document)
        else:
            text = "\n\n".join(turn["content"] for turn in document)
        with library_errors("the model's tokenizer cannot read the calibration text"):
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
