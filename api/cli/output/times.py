"""Durations and times as people read them."""

from datetime import datetime

from replaceme_core.report.figures import time_left


def describe_eta(seconds: float | None, error: float | None) -> str:
    """The time left, give or take `error` seconds.

    >>> describe_eta(240, 60), describe_eta(240, None), describe_eta(240, 300), describe_eta(None, None)
    ('3 to 5 minutes left', 'about 4 minutes left', 'up to 9 minutes left', '')
    """
    return "" if seconds is None else f"{time_left(seconds, error)} left"


def describe_time(at: datetime | None) -> str:
    """Local time to the second."""
    return "" if at is None else at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
