import pytest

from replaceme_core.selection.halving import halve, rounds


@pytest.mark.parametrize(
    ("candidates", "batches", "expected"),
    [
        (6, 4, [(6, 0, 1), (3, 1, 2), (2, 2, 4)]),
        (6, 1, [(6, 0, 1)]),
        (2, 4, [(2, 0, 4)]),
        (1, 8, [(1, 0, 8)]),
        (9, 16, [(9, 0, 2), (5, 2, 4), (3, 4, 8), (2, 8, 16)]),
    ],
)
def test_the_field_halves_while_the_evidence_doubles(
    candidates: int, batches: int, expected: list[tuple[int, int, int]]
) -> None:
    assert rounds(candidates, batches) == expected


def test_the_last_two_are_compared_until_there_is_no_doubt() -> None:
    noise = [0.01, -0.01, 0.02, 0.0, -0.02, 0.01, 0.0, -0.01]
    losses = {"worse": [101.0] * 8, "far": [120.0] * 8, "best": [100.0 + one for one in noise], "further": [130.0] * 8}
    best, seen = halve(list(losses), batches=8, loss=lambda one, batch: losses[one][batch])
    assert best == "best"
    assert len(seen["best"]) == 8
    assert len(seen["worse"]) == 4
    assert len(seen["further"]) == 1, "the field has halved by then"
