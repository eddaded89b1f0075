from collections.abc import Callable, Sequence

import pytest

from replaceme_core.selection.tournament import accepted_scale, is_worse, paired_mean, rounds, tournament

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
        (9, 16, [(9, 0, 2), (5, 2, 4), (3, 4, 8), (2, 8, 16)]),
    ],
)
def test_the_field_halves_while_the_evidence_doubles(
    candidates: int, batches: int, expected: list[tuple[int, int, int]]
) -> None:
    assert rounds(candidates, batches) == expected


def judged(losses: dict[str, list[float]]) -> tuple[str, dict[str, list[float]]]:
    return tournament(
        list(losses),
        batches=8,
        loss=lambda one, batch: losses[one][batch],
        rank={one: number for number, one in enumerate(losses)},
        advance=lambda fraction: None,
    )


def test_the_last_two_meet_until_there_is_no_doubt() -> None:
    noise = [0.01, -0.01, 0.02, 0.0, -0.02, 0.01, 0.0, -0.01]
    best = [100.0 + one for one in noise]
    winner, seen = judged({"worse": [101.0] * 8, "best": best})
    assert winner == "best"
    assert len(seen["worse"]) == 4
    assert seen["best"] == best  # the winner's loss is comparable with anything


def test_the_rank_decides_between_near_ones_only() -> None:
    """Both differ by less than two standard errors; two in a hundred are too many for the rank to decide."""
    best = [100.0, 120.0, 90.0, 110.0, 100.0, 120.0, 90.0, 110.0]
    swings = [9.0, -5.0, 7.0, -3.0, 6.0, -4.0, 8.0, -2.0]  # 2 on average, standard error 2.1
    for part, winner in ((0.25, "ranked first"), (1.0, "best")):
        first = [one + part * by for one, by in zip(best, swings, strict=True)]
        assert judged({"ranked first": first, "best": best})[0] == winner


def test_near_ones_are_seen_on_everything() -> None:
    near = [100.0, 101.0] * 4
    winner, seen = judged({"first": near, "second": near[::-1]})
    assert winner == "first"  # by rank
    assert [len(losses) for losses in seen.values()] == [8, 8]


@pytest.mark.parametrize(("change", "scale", "looked_at"), [(-1.0, 1.0, 4), (0.0, 0.0, 8), (1.0, 0.0, 8)])
def test_a_change_earns_its_scale_with_no_more_looks_than_needed(change: float, scale: float, looked_at: int) -> None:
    def loss_at(at: float) -> Callable[[int], float]:
        return lambda batch: 100.0 + batch + at * change

    known = [loss_at(1.0)(batch) for batch in range(8)]
    found, scaled, none = accepted_scale(loss_at, batches=8, known=known)
    assert found == scale
    assert len(none) == looked_at
    assert len(scaled) == 8


def test_losses_that_ended_early_are_compared_where_both_are_known() -> None:
    def mean(losses: Sequence[float]) -> float:
        return sum(losses) / len(losses)

    assert paired_mean([6.0, 4.0], beside=[5.0, 3.0, 9.0, 11.0], mean=mean) == 8.0, "worse by 1, on tokens of 7"
    assert paired_mean([6.0, 4.0], beside=[5.0, 3.0], mean=mean) == 5.0
