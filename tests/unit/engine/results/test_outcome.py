"""What a person must know of a result: warnings, and sources of text that alone would have chosen other blocks."""

import pytest

from replaceme_core.engine.evaluation.compare import AnswerPair, TextResult
from replaceme_core.engine.methods.task import Candidate
from replaceme_core.engine.results.outcome import Disagreement, disagreements, warnings_of


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
    warnings = warnings_of(found, [])
    assert [one.code for one in warnings] == codes
    assert all("pruned model" in one.message for one in warnings)


def text(name: str, times: float) -> TextResult:
    size = {"tokens": 100, "sequences": 4, "words": 50, "bytes": 300}
    return TextResult(name=name, before=10.0, after=10.0 * times, divergence=0.1, agreement=0.9, **size)


@pytest.mark.parametrize(
    ("texts", "codes"),
    [
        ([text("home", 1.6), text("own", 3.1)], []),
        ([text("home", 1.6), text("own", 3.3)], ["worse_elsewhere"]),
        ([text("home", 4.0), text("own", 3.3)], []),  # better than at home
        ([text("home", 4.0)], []),
    ],
)
def test_what_is_far_worse_on_other_text(texts: list[TextResult], codes: list[str]) -> None:
    found = warnings_of([], texts)
    assert [one.code for one in found] == codes
    assert all("on own text" in one.message and "home 1.6 times" in one.message for one in found)


def test_what_the_time_budget_left_out_is_a_warning() -> None:
    assert warnings_of([], []) == []
    (warning,) = warnings_of([], [], left_out=["the choice of runs of blocks", "the refit without blocks 3-5"])
    assert warning.code == "time_budget"
    assert "the choice of runs of blocks and the refit without blocks 3-5" in warning.message


def row(start: int, a: float, b: float, **fields: object) -> Candidate:
    return Candidate(start=start, end=start + 1, source_losses=(("a", a), ("b", b)), **fields)  # type: ignore[arg-type]


def test_a_source_that_prefers_another_window_is_named() -> None:
    rows = [row(1, 3.0, 4.0, chosen=True), row(3, 2.5, 5.0), row(5, 2.0, 2.0, estimated=True)]
    assert disagreements(rows) == [Disagreement(source="a", start=3, end=4, loss=2.5, chosen_loss=3.0)]


def test_where_all_agree_nothing_is_said() -> None:
    assert disagreements([row(1, 3.0, 4.0, chosen=True), row(3, 3.0, 5.0)]) == []
    assert disagreements([Candidate(start=1, end=2, chosen=True)]) == []


def test_steps_and_groups_are_no_alternatives() -> None:
    rows = [row(1, 3.0, 4.0, chosen=True, step=1), row(3, 2.0, 2.0, step=2)]
    assert disagreements(rows) == []
    assert disagreements([row(1, 3.0, 4.0, chosen=True), row(3, 2.0, 2.0, group=1)]) == []


def test_losses_of_sources_are_an_object_in_the_report() -> None:
    assert row(1, 3.0, float("nan")).as_dict()["source_losses"] == {"a": 3.0, "b": None}
