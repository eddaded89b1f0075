"""A result whose answers are worse than the source model's in kind carries a warning."""

import pytest

from replaceme_core.evaluation.answers import AnswerPair
from replaceme_core.results.warnings import warnings_of


def answers(*after: str, loops: tuple[bool, ...] = (False,) * 5, before: str | None = None) -> list[AnswerPair]:
    return [
        AnswerPair(
            prompt=f"question {number}",
            before=f"answer {number}" if before is None else before,
            after=text,
            before_loops=False,
            after_loops=loops[number],
        )
        for number, text in enumerate(after)
    ]


@pytest.mark.parametrize(
    ("found", "codes"),
    [
        (answers("Paris.", "Red.", "Air.", "Seven.", "def"), []),
        (answers("I am", "I am", "I am", "Seven.", "def"), ["answers_same"]),
        (answers("", "", "Air.", "Seven.", "def"), ["answers_empty"]),
        (answers("a", "b", "c", "d", "e", loops=(True, True, False, False, False)), ["answers_loop"]),
        (answers("a", "b", "c", "d", "e", loops=(True, False, False, False, False)), []),  # one of five
        (answers("I am", "I am", "I am", "I am", "I am", before="I am"), []),  # the source model is no better
        ([], []),
    ],
)
def test_what_is_worse_in_kind(found: list[AnswerPair], codes: list[str]) -> None:
    warnings = warnings_of(found)
    assert [one.code for one in warnings] == codes
    assert all("pruned model" in one.message for one in warnings)
