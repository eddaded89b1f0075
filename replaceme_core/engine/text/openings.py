"""The tokens after which a model generates calibration text: the start of a document or of a conversation.

After the start of a text, a model generates documents of all the kinds it has learned. A model that was tuned to follow
instructions, after the start of the user's turn, generates a question and answers it (Magpie, arXiv 2406.08464).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from replaceme_core.engine.text.chat_template import render
from replaceme_core.engine.text.packing import beginning_of_text

_PLACEHOLDER = "@@replaceme@@"
"""In place of the user's message while the chat template is split."""
_SEPARATORS = ("<|endoftext|>", "<|end_of_text|>")
"""Tokens between documents, for a tokenizer that adds none at the start of a text. A model that was tuned to follow
instructions still has the token, but its `bos_token` and `eos_token` are those of turns."""


@dataclass(frozen=True, kw_only=True)
class Openings:
    """Token ids that are given to the model, one or more; `None` where the tokenizer has no usable chat template.

    `document` begins a document; `user` the first turn of a conversation; `assistant` comes after that turn.
    """

    document: tuple[int, ...]
    user: tuple[int, ...] | None = None
    assistant: tuple[int, ...] | None = None

    def of(self, row: int) -> Iterator[Sequence[int]]:
        """Yield, without end, the tokens to give to a row at its start and after each end token.

        With a chat template, every second row holds conversations; all others hold documents.
        """
        while True:
            if self.user is None or self.assistant is None or row % 2 == 0:
                yield self.document
            else:
                yield self.user
                yield self.assistant


def openings(tokenizer: PreTrainedTokenizerBase) -> Openings:
    """The openings of this tokenizer and its chat template; a template that cannot be split counts as none."""
    document = _start_of_text(tokenizer)
    if tokenizer.chat_template is None:
        return Openings(document=document)
    asked = render(tokenizer, [{"role": "user", "content": _PLACEHOLDER}], asks=True)
    user, found, assistant = asked.partition(_PLACEHOLDER)
    turns = _ids(tokenizer, user), _ids(tokenizer, assistant)
    if not found or not all(turns):  # a tokenizer may drop the newlines of which a plain template consists
        return Openings(document=document)
    return Openings(document=document, user=turns[0], assistant=turns[1])


def _start_of_text(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """One token, if possible: the one that the tokenizer puts before a text, else the one that separates texts."""
    known = tokenizer.get_added_vocab()
    separators = [known[one] for one in _SEPARATORS if one in known]
    for token in [*beginning_of_text(tokenizer), *separators, tokenizer.bos_token_id, tokenizer.eos_token_id]:
        if isinstance(token, int):
            return (token,)
    return _ids(tokenizer, "\n") or (0,)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
