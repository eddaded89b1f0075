"""How a text that the model writes itself begins, and how it goes on after each end that the model sets.

Left to itself after the start of a text, a model writes documents of all the kinds it has learned; one that was tuned
to follow instructions, given the user's turn, makes up a question and answers it (Magpie, arXiv 2406.08464).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from replaceme_core.calibration.packing import beginning_of_text

_PLACEHOLDER = "@@replaceme@@"
"""Stands for what the user says while the chat template is taken apart."""
_SEPARATORS = ("<|endoftext|>", "<|end_of_text|>")
"""What stands between documents where a tokenizer opens no text by itself. A model that was tuned to follow
instructions keeps the token but no longer names it: its `bos_token` and `eos_token` are then those of turns."""


@dataclass(frozen=True, kw_only=True)
class Openings:
    """Token ids that are given to the model. What is `None` its tokenizer has no template for.

    `document` begins an empty text; `user` the first turn of a conversation; `assistant` comes after that turn.
    """

    document: tuple[int, ...]
    user: tuple[int, ...] | None = None
    assistant: tuple[int, ...] | None = None

    def of(self, row: int) -> Iterator[Sequence[int]]:
        """What to give to a row at the start and, without end, after each end that the model sets.

        Every second row holds conversations where there is a template, the others documents.
        """
        while True:
            if self.user is None or self.assistant is None or row % 2 == 0:
                yield self.document
            else:
                yield self.user
                yield self.assistant


def openings(tokenizer: PreTrainedTokenizerBase) -> Openings:
    """As this tokenizer and its chat template have them; a template that cannot be taken apart counts as none."""
    document = _start_of_text(tokenizer)
    if tokenizer.chat_template is None:
        return Openings(document=document)
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": _PLACEHOLDER}], tokenize=False, add_generation_prompt=True
    )
    user, found, assistant = str(asked).partition(_PLACEHOLDER)
    if not found or not user or not assistant:
        return Openings(document=document)
    return Openings(document=document, user=_ids(tokenizer, user), assistant=_ids(tokenizer, assistant))


def _start_of_text(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """One token where there is one: what the tokenizer puts before a text, else what separates texts."""
    known = tokenizer.get_added_vocab()
    separators = [known[one] for one in _SEPARATORS if one in known]
    for token in [*beginning_of_text(tokenizer), *separators, tokenizer.bos_token_id, tokenizer.eos_token_id]:
        if isinstance(token, int):
            return (token,)
    return _ids(tokenizer, "\n")


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
