import pytest

from replaceme_core.webhooks import HOUR, PAUSES, pause_after


def test_the_pauses_grow_and_take_three_days_together() -> None:
    assert list(PAUSES) == sorted(PAUSES)
    assert 71 * HOUR < sum(PAUSES) < 73 * HOUR
    for tries, pause in enumerate(PAUSES, 1):
        found = pause_after(tries)
        assert found is not None
        assert pause <= found <= 1.1 * pause
    assert pause_after(len(PAUSES) + 1) is None


@pytest.mark.parametrize(("asked", "expected"), [(3600.0, 3600.0), (1e9, 24 * HOUR)])
def test_a_receiver_may_ask_for_more_time_but_at_most_a_day(asked: float, expected: float) -> None:
    assert pause_after(1, retry_after=asked) == expected


def test_a_receiver_may_not_ask_for_less_time() -> None:
    pause = pause_after(4, retry_after=0.0)
    assert pause is not None
    assert pause >= PAUSES[3]
