"""Durations and times as people read them."""

from datetime import datetime

from replaceme_core.report_page.figures import time_left


def describe_eta(seconds: float | None, error: float | None) -> str:
    """The time left, give or take `error` seconds.

    >>> describe_eta(240, 60), describe_eta(240, None), describe_eta(240, 300), describe_eta(None, None)
    ('3 to 5 minutes left', 'about 4 minutes left', 'up to 9 minutes left', '')
    """
    return "" if seconds is None else f"{time_left(seconds, error)} left"


def describe_duration(seconds: float) -> str:
    """
    >>> [describe_duration(s) for s in (0.4, 59.6, 61, 3700)]
    ['0 s', '1 min 00 s', '1 min 01 s', '1 h 01 min']
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def describe_time(at: datetime | None) -> str:
    """Local time to the second."""
    return "" if at is None else at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
