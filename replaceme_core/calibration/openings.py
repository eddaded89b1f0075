"""How a text that the model writes itself begins, and how it goes on after each end that the model sets.

A model that was tuned to follow instructions makes up a question and answers it (Magpie, arXiv 2406.08464); one that
was not writes on from an empty document.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

_PLACE = "@@replaceme@@"
"""Stands for what the user says while the chat template is taken apart."""


@dataclass(frozen=True, kw_only=True)
class Openings:
    """Token ids that are given to the model. What is `None` its tokenizer has no template for.

    `document` begins an empty text; `user` the first turn of a conversation; `assistant` comes after that turn.
    """

    document: tuple[int, ...]
    user: tuple[int, ...] | None = None
    assistant: tuple[int, ...] | None = None

    def given(self) -> Iterator[Sequence[int]]:
        """What to give at the start and, without end, after each end that the model sets."""
        while True:
            if self.user is None or self.assistant is None:
                yield self.document
            else:
                yield self.user
                yield self.assistant


def openings(tokenizer: PreTrainedTokenizerBase) -> Openings:
    """As this tokenizer and its chat template have them; a template that cannot be taken apart counts as none."""
    start = tokenizer.bos_token_id if isinstance(tokenizer.bos_token_id, int) else tokenizer.eos_token_id
    document = (start,) if isinstance(start, int) else tuple(_ids(tokenizer, "\n"))
    if tokenizer.chat_template is None:
        return Openings(document=document)
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": _PLACE}], tokenize=False, add_generation_prompt=True
    )
    user, found, assistant = str(asked).partition(_PLACE)
    if not found or not user or not assistant:
        return Openings(document=document)
    return Openings(document=document, user=_ids(tokenizer, user), assistant=_ids(tokenizer, assistant))


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
