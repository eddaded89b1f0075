"""Where one source alone would have chosen other blocks, the report says so."""

from replaceme_core.engine.results.disagreement import Disagreement, disagreements
from replaceme_core.engine.selection.candidate import Candidate


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
