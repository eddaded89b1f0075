"""Durations and times as people read them."""

from datetime import datetime


def describe_eta(seconds: float | None) -> str:
    return "" if seconds is None else f"about {describe_duration(seconds)} left"


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
