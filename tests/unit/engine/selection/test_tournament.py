from collections.abc import Callable

import pytest

from replaceme_core.engine.methods.judge import Judge, accepted_scale, tournament

JUDGE = Judge(sources=[0] * 8, predictions=[10] * 8, dense=[50.0] * 8)


def judged(losses: dict[str, list[float]]) -> tuple[str, dict[str, list[float]]]:
    return tournament(
        list(losses),
        judge=JUDGE,
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
    found, scaled, none = accepted_scale(loss_at, judge=JUDGE, known=known)
    assert found == scale
    assert len(none) == looked_at
    assert len(scaled) == 8


def test_one_bad_batch_leaves_nothing_out() -> None:
    """The first batch says the opposite of all others."""
    late = [115.0, *[100.0 + 0.1 * number for number in range(7)]]
    winner, seen = judged({"early": [100.0, *[105.0 + 0.1 * number for number in range(7)]], "late": late})
    assert winner == "late"
    assert len(seen["late"]) == 8


def test_a_window_that_is_good_at_one_text_alone_loses() -> None:
    two = Judge(sources=[0, 1] * 4, predictions=[10] * 8, dense=[50.0] * 8)
    losses = {"at home": [55.0, 90.0] * 4, "everywhere": [65.0, 66.0] * 4}
    winner, _ = tournament(
        list(losses), judge=two, loss=lambda one, batch: losses[one][batch], advance=lambda fraction: None
    )
    assert winner == "everywhere"
