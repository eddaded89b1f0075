"""How the samples are divided among the sources of a mix."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replaceme_core.engine.text.drawing import divide, sequence_counts
from replaceme_core.request.calibration import held_out_samples
from replaceme_core.request.method import Method
from replaceme_core.request.resolve import ResolvedCalibration


def calibration(samples: int, **fields: object) -> ResolvedCalibration:
    return ResolvedCalibration.model_validate({"samples": samples, "max_length": 16, **fields})


@pytest.mark.parametrize(
    ("samples", "share", "expected"),
    [
        (64, 0.0, [(56, 8)]),
        (64, 0.5, [(28, 4), (28, 4)]),
        (64, 1.0, [(0, 4), (56, 8)]),
        (9, 0.25, [(6, 1), (2, 0)]),
        (2, 0.5, [(1, 1), (0, 0)]),
        (8, 0.9, [(1, 1), (6, 0)]),
    ],
)
def test_own_text_beside_one_dataset(samples: int, share: float, expected: list[tuple[int, int]]) -> None:
    found = sequence_counts(calibration(samples, dataset="org/a", self_generated=share), measure=0)
    assert [(one.fit, one.held_out) for one in found] == expected


@pytest.mark.parametrize(("samples", "length", "judging"), [(64, 512, 4), (2, 512, 2), (1024, 1024, 11), (64, 6000, 2)])
def test_a_text_that_only_judges_has_sequences_beside_the_samples(samples: int, length: int, judging: int) -> None:
    fields = {"samples": samples, "max_length": length, "self_generated": 0.0, "judged_on": "builtin:code"}
    of_text, of_judge = sequence_counts(ResolvedCalibration.model_validate({"dataset": "org/a", **fields}), measure=16)
    assert of_text.fit + of_text.held_out == samples
    assert (of_judge.fit, of_judge.held_out, of_judge.measure) == (0, judging, 4)


@pytest.mark.parametrize(("samples", "length", "share", "own"), [(64, 512, 0.125, (7, 4)), (64, 512, 0.5, (28, 4))])
def test_own_text_judges_with_as_many_sequences_as_another_text(
    samples: int, length: int, share: float, own: tuple[int, int]
) -> None:
    """Beside the samples where its share of the held-out ones would be fewer."""
    fields = {"samples": samples, "max_length": length, "self_generated": share, "judged_on": "builtin:code"}
    found = ResolvedCalibration.model_validate({"dataset": "org/a", **fields})
    of_text, of_own, of_judge = sequence_counts(found, measure=0)
    assert (of_own.fit, of_own.held_out) == own
    assert of_judge.held_out == 4
    assert of_text.held_out == (7 if share == 0.125 else 4), "no more than its share: the text may be short"
    assert found.generating == sum(own)
    total = sum(one.fit + one.held_out for one in (of_text, of_own, of_judge))
    assert total == samples + found.beside_samples(Method.LEAST_SQUARES)


def test_a_long_calibration_has_enough_of_its_own_text_among_the_samples() -> None:
    fields = {"samples": 1024, "max_length": 1024, "self_generated": 0.125, "judged_on": "builtin:code"}
    found = ResolvedCalibration.model_validate({"dataset": "org/a", **fields})
    assert [one.held_out for one in sequence_counts(found, measure=0)] == [112, 16, 11]
    assert found.generating == 128


def test_every_text_measures_and_the_first_one_most() -> None:
    sources = [{"self_generated": True}, {"dataset": "org/a"}, {"dataset": "org/b"}]
    for measure, expected in ((16, [0, 16, 4]), (3, [0, 3, 1]), (0, [0, 0, 0])):
        found = sequence_counts(calibration(64, sources=sources), measure=measure)
        assert [one.measure for one in found] == expected


@given(
    shares=st.lists(st.floats(0.001, 1), min_size=1, max_size=8),
    more=st.integers(0, 3000),
    generated=st.booleans(),
)
def test_counts_are_complete_and_follow_the_shares(shares: list[float], more: int, generated: bool) -> None:
    total = sum(shares)
    sources: list[dict[str, object]] = [
        {"dataset": f"org/{number}", "share": share / total} for number, share in enumerate(shares)
    ]
    if generated and len(sources) > 1:
        sources[-1] = {"self_generated": True, "share": shares[-1] / total}
    samples = 8 * len(sources) + more
    found = sequence_counts(calibration(samples, sources=sources), measure=16)
    held_out = held_out_samples(samples)
    assert sum(one.held_out for one in found) == held_out
    assert sum(one.fit for one in found) == samples - held_out
    for source, share, one in zip(sources, shares, found, strict=True):
        assert "self_generated" in source or (one.fit >= 1 and one.held_out >= 1)
        for count, whole in ((one.fit, samples - held_out), (one.held_out, held_out)):
            assert abs(count - whole * share / total) < len(sources)


def test_the_largest_remainders_are_rounded_up() -> None:
    assert divide(10, [0.55, 0.25, 0.2], least=[0, 0, 0]) == [6, 2, 2]
    assert divide(7, [0.5, 0.5], least=[0, 0]) == [4, 3]
    assert divide(3, [0.98, 0.01, 0.01], least=[1, 1, 1]) == [1, 1, 1]
