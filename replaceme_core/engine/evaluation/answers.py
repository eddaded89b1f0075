"""What a model answers to a few prompts, greedily: a person sees at once what a perplexity does not tell.

A chat model gets five questions through its chat template, a base model five openings to continue.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from replaceme_core.engine.text.chat_template import render
from replaceme_core.families.resolve import resolve

QUESTIONS = (
    "What is the capital of France?",
    "Name three colors.",
    "Why is the sky blue? Answer in one sentence.",
    "How many days does a week have?",
    "Write a Python function that adds two numbers.",
)
OPENINGS = (
    "The capital of France is",
    "Once upon a time, there was a",
    "Water boils when",
    "The seven days of the week are",
    "def add(a, b):\n    ",
)
NEW_TOKENS = 48
LONGEST_UNIT, LEAST_REPEATED = 16, 12
"""An answer loops if its end repeats a unit of at most `LONGEST_UNIT` tokens three times, over `LEAST_REPEATED` tokens
or more."""
GRAM = 4


@dataclass(frozen=True, kw_only=True)
class Answer:
    """`loops`: the answer ends in a repetition. `tokens` are the new ones, without the end token."""

    prompt: str
    text: str
    tokens: tuple[int, ...]
    loops: bool


@dataclass(frozen=True, kw_only=True)
class AnswerPair:
    """The answers of the source model and of the pruned one to the same prompt."""

    prompt: str
    before: str
    after: str
    before_loops: bool
    after_loops: bool

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def prompts_for(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Questions where the tokenizer has a chat template, else openings."""
    return OPENINGS if tokenizer.chat_template is None else QUESTIONS


@torch.inference_mode()
def answer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[Answer]:
    """Greedy answers of at most `NEW_TOKENS` tokens, one for each prompt."""
    prompts = prompts_for(tokenizer)
    rows = [_ids(tokenizer, prompt) for prompt in prompts]
    width = max(map(len, rows))
    # padded on the left, so that every answer begins at the same position; padded positions are masked
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device)
    ends = _end_tokens(model, tokenizer)
    model.generation_config = GenerationConfig()  # the model's own may ask for sampling
    output = model.generate(  # type: ignore[operator]  # of GenerationMixin, which the type does not tell
        ids,
        attention_mask=mask,
        generation_config=GenerationConfig(
            do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=0, eos_token_id=ends or None
        ),
        **dict.fromkeys(resolve(model).layout.switched_off, False),
    )
    found = []
    for prompt, new in zip(prompts, output[:, width:].tolist(), strict=True):
        end = next((place for place, token in enumerate(new) if token in ends), len(new))
        tokens = tuple(new[:end])
        text = str(tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()
        found.append(Answer(prompt=prompt, text=text, tokens=tokens, loops=repeats(tokens)))
    return found


def pair(before: Sequence[Answer], after: Sequence[Answer]) -> list[AnswerPair]:
    """The answers of two models side by side."""
    return [
        AnswerPair(prompt=old.prompt, before=old.text, after=new.text, before_loops=old.loops, after_loops=new.loops)
        for old, new in zip(before, after, strict=True)
    ]


def repeats(tokens: Sequence[int]) -> bool:
    """Whether `tokens` end in a repetition.

    >>> repeats([5, 1, 2, 3] + [7, 8, 9] * 4), repeats(list(range(20))), repeats([4] * 12)
    (True, False, True)
    """
    for unit in range(1, LONGEST_UNIT + 1):
        needed = max(3 * unit, LEAST_REPEATED)
        end = tokens[-needed:]
        if len(end) == needed and end[unit:] == end[:-unit]:
            return True
    return False


def distinct_share(answers: Sequence[Answer]) -> float | None:
    """The share of different runs of `GRAM` tokens among all of them; `None` where no answer is that long."""
    grams = [one.tokens[place : place + GRAM] for one in answers for place in range(len(one.tokens) - GRAM + 1)]
    return len(set(grams)) / len(grams) if grams else None


def _ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    chats = tokenizer.chat_template is not None
    text = render(tokenizer, [{"role": "user", "content": prompt}], asks=True) if chats else prompt
    return list(tokenizer(text, add_special_tokens=not chats, verbose=False)["input_ids"]) or [0]


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens after which a model has said all."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    found = configured if isinstance(configured, list) else [configured]
    return sorted({token for token in [*found, tokenizer.eos_token_id] if isinstance(token, int)})
