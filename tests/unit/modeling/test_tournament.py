import pytest

from replaceme_core.modeling.tournament import is_worse, rounds

BEST = [100.0, 120.0, 90.0, 110.0]


@pytest.mark.parametrize(
    ("losses", "worse"),
    [
        ([105.0, 125.5, 94.8, 115.1], True),  # by about five in every batch
        ([103.0, 117.5, 94.0, 109.0], False),  # now more, now less
        ([100.5, 120.0, 90.0, 110.0], False),  # in a single batch
        (BEST, False),
        ([101.0, 121.0], True),  # left behind in an earlier round
    ],
)
def test_a_difference_counts_when_it_is_more_than_chance(losses: list[float], worse: bool) -> None:
    assert is_worse(losses, than=BEST) is worse


def test_a_single_batch_decides_by_itself() -> None:
    assert is_worse([2.0], than=[1.0])
    assert not is_worse([1.0], than=[1.0])


@pytest.mark.parametrize(
    ("candidates", "batches", "expected"),
    [
        (6, 4, [(6, 0, 1), (3, 1, 2), (2, 2, 4)]),
        (6, 1, [(6, 0, 1)]),
        (2, 4, [(2, 0, 4)]),
        (1, 8, [(1, 0, 8)]),
        (9, 16, [(9, 0, 4), (5, 4, 8), (3, 8, 16)]),
    ],
)
def test_the_field_halves_while_the_evidence_doubles(
    candidates: int, batches: int, expected: list[tuple[int, int, int]]
) -> None:
    assert rounds(candidates, batches) == expected
