"""How a text that the model writes itself begins, and how it goes on after each end that the model sets.

A model that was tuned to follow instructions makes up a question and answers it (Magpie, arXiv 2406.08464), or writes
a scene of fiction that is asked for; one that was not writes on from an empty document.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

_PLACE = "@@replaceme@@"
"""Stands for what the user says while the chat template is taken apart."""
_WHO = (
    "a young doctor",
    "an old fisherman",
    "two sisters",
    "a detective",
    "a soldier on leave",
    "a schoolteacher",
    "a runaway boy",
    "a retired judge",
    "a waitress",
    "a programmer",
    "a widow",
    "a mechanic",
    "a nurse on the night shift",
    "a student",
    "a pilot",
    "a farmer's daughter",
)
_WHAT = (
    "argues with an old friend",
    "finds a letter that was not meant for them",
    "comes home after many years",
    "hides from someone",
    "waits for news",
    "tells a secret",
    "says goodbye",
    "is offered a strange job",
    "makes a terrible mistake",
    "falls in love",
    "looks for a lost dog",
    "hears a noise at night",
    "meets a stranger on a train",
    "plans an escape",
    "loses a bet",
    "learns the truth about the family",
)
_WHERE = (
    "in a kitchen",
    "on a beach in winter",
    "in a hospital corridor",
    "in a crowded bar",
    "in the woods",
    "in a parked car",
    "at a wedding",
    "on a ship",
    "in an empty school",
    "at a bus station",
    "in a small apartment",
    "on a farm",
    "in a castle",
    "on the roof",
    "in a police station",
    "at a funeral",
)


@dataclass(frozen=True, kw_only=True)
class Openings:
    """Token ids that are given to the model. What is `None` its tokenizer has no template for.

    `document` begins an empty text; `user` the first turn of a conversation; `assistant` comes after that turn.
    """

    document: tuple[int, ...]
    user: tuple[int, ...] | None = None
    assistant: tuple[int, ...] | None = None

    def given(self, tokenizer: PreTrainedTokenizerBase, *, scene: bool, draw: random.Random) -> Iterator[Sequence[int]]:
        """What to give at the start and, without end, after each end that the model sets. `scene`: fiction first."""
        while True:
            if self.user is None or self.assistant is None:
                yield self.document
                continue
            if scene:
                yield (*self.user, *_ids(tokenizer, scene_prompt(draw)), *self.assistant)
                scene = False  # what is left of the sequence is a conversation
            else:
                yield self.user
                yield self.assistant


def scene_prompt(draw: random.Random) -> str:
    """A request for fiction with people who speak, which instructions alone hardly bring about."""
    return (
        f"Write a scene from a novel in which {draw.choice(_WHO)} {draw.choice(_WHAT)} {draw.choice(_WHERE)}. "
        "Use dialogue."
    )


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
