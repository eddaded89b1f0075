"""When a message is sent again after a failure: with longer and longer pauses, for three days."""

import random

HOUR = 3600.0
PAUSES = (5.0, 30.0, 120.0, 600.0, 1800.0, 2 * HOUR, 5 * HOUR, 10 * HOUR, 14 * HOUR, 18 * HOUR, 22 * HOUR)
"""Seconds between one try and the next. The first try is at once, so there are 12 in all."""
LONGEST_RETRY_AFTER = 24 * HOUR
_JITTER = 0.1


def pause_after(tries: int, *, retry_after: float | None = None, pauses: tuple[float, ...] = PAUSES) -> float | None:
    """Seconds until the next try after `tries` tries; `None`: there is none.

    A tenth is added at random, so that messages which failed together do not return together. `retry_after` is what
    the receiver asked for, in seconds: the pause is not shorter, but at most a day.
    """
    if tries > len(pauses):
        return None
    pause = pauses[tries - 1] * (1 + random.uniform(0, _JITTER))
    return max(pause, min(retry_after or 0.0, LONGEST_RETRY_AFTER))
