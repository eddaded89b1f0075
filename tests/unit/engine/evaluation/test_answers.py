"""Answers to a few prompts, and whether they repeat themselves."""

from pathlib import Path

import pytest

from replaceme_core.engine.evaluation.compare import (
    OPENINGS,
    QUESTIONS,
    answer,
    distinct_share,
    pair,
    prompts_for,
    repeats,
)
from tests.fixtures.models.tiny import byte_tokenizer, tiny_model

TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}<|assistant|>"


def test_a_chat_model_is_asked_through_its_template() -> None:
    tokenizer = byte_tokenizer()
    assert prompts_for(tokenizer) == OPENINGS
    tokenizer.chat_template = TEMPLATE
    found = answer(tiny_model(), tokenizer)
    assert [one.prompt for one in found] == list(QUESTIONS)
    assert all("<|assistant|>" not in one.text for one in found)


def test_the_same_model_gives_the_same_answers() -> None:
    before, after = (answer(tiny_model(), byte_tokenizer()) for _ in range(2))
    assert all(one.before == one.after and one.before_loops == one.after_loops for one in pair(before, after))


@pytest.mark.parametrize(
    ("tokens", "loops"),
    [
        ([1, 2, 3, 4] + [9, 8] * 6, True),
        ([7] * 12, True),
        ([7] * 11, False),  # three dots are not a loop
        (list(range(40)), False),
        ([*range(20), *range(20), *range(20)], False),  # a unit that is too long
        ([*range(5), *range(5), *range(5)], True),
        ([5] * 20 + list(range(30, 40)), False),  # it goes on after that
        ([], False),
    ],
)
def test_an_end_that_repeats_itself_is_a_loop(tokens: list[int], loops: bool) -> None:
    assert repeats(tokens) is loops


def test_the_share_of_different_runs_falls_where_text_repeats(tmp_path: Path) -> None:
    found = answer(tiny_model(), byte_tokenizer())
    share = distinct_share(found)
    assert share is not None and 0 < share <= 1
    assert distinct_share([]) is None
