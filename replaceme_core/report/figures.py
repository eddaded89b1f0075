"""Numbers as people read them, for every printer of a result. What has no value is an en dash."""

import math
from collections.abc import Callable
from functools import partial

from replaceme_core.wording import counted

Form = Callable[[float], str]
"""What makes a number a text."""

_MINUTE, _HOUR, _DAY = 60, 3600, 86_400
_UNITS_OF_RANGE = ((1, "seconds", 95), (_MINUTE, "minutes", 95), (_HOUR, "hours", 36), (_DAY, "days", math.inf))
"""Each with its name, and up to how many of it times are given in it."""
_DECIMAL_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
_DIGITS = 3  # of a number that is not whole
NONE = "\N{EN DASH}"
"""Where there is no value."""


def duration(seconds: float) -> str:
    """
    >>> [duration(s) for s in (0.001, 0.4, 59.6, 61, 3700, 200_000)]
    ['< 0.1 s', '0.4 s', '1 min 00 s', '1 min 01 s', '1 h 01 min', '2 d 7 h']
    """
    if 0 < seconds < 0.05:
        return "< 0.1 s"
    whole = round(seconds)
    if seconds < 10:
        return f"{seconds:.1f} s"
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE:02} s"
    if whole < _DAY:
        return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE:02} min"
    return f"{whole // _DAY} d {whole % _DAY // _HOUR} h"


def time_range(low: float, high: float | None = None) -> str:
    """The times between which something is expected, or the one, in seconds, with as many digits as are known.

    >>> [time_range(*both) for both in ((190, 290), (31, 48), (2, 80), (5700, 12_000), (140, 146))]
    ['3 to 5 minutes', '30 to 50 seconds', 'up to 80 seconds', '1.5 to 3.5 hours', 'about 2.5 minutes']
    >>> [time_range(one) for one in (0.2, 37, 4000, 200_000)]
    ['about 1 second', 'about 35 seconds', 'about 65 minutes', 'about 2.5 days']
    >>> time_range(0.2, 1.2)
    'up to 1 second'
    """
    high = low if high is None else high
    unit, name = next((unit, name) for unit, name, until in _UNITS_OF_RANGE if high < until * unit)
    count = high / unit
    step = 0.5 if count < 5 and unit > 1 else 1 if count < 20 else 5
    least, most = round(low / unit / step) * step, max(round(count / step), 1) * step
    if least >= most or low == high:
        return f"about {counted(most, name)}"
    return f"{f'{least:g}' if least else 'up'} to {counted(most, name)}"


def time_left(seconds: float, error: float | None) -> str:
    """What is left of a job, give or take `error` seconds.

    >>> time_left(75, 12), time_left(75, 750)
    ('65 to 85 seconds', 'up to 14 minutes')
    """
    return time_range(max(seconds - (error or 0), 0), seconds + (error or 0))


def size(count: float | None) -> str:
    """
    >>> [size(n) for n in (0, 999, 1000, 269_060_552, 5e12)]
    ['0 B', '999 B', '1.00 kB', '269 MB', '5.00 TB']
    """
    if count is None:
        return NONE
    value, unit = float(count), 0
    while value >= 999.5 and unit < len(_DECIMAL_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    digits = 0 if unit == 0 else max(_DIGITS - len(str(int(value))), 0)
    return f"{value:.{digits}f} {_DECIMAL_UNITS[unit]}"


def number(value: float | None) -> str:
    """A number with as many digits as are of use.

    >>> [number(n) for n in (30, 134_515_008.0, 12.3456, 0.012345, 1e-9, None)]
    ['30', '134,515,008', '12.35', '0.01235', '1e-09', '–']
    """
    if value is None:
        return NONE
    if value == int(value):
        return f"{int(value):,}"
    return f"{value:,.2f}" if abs(value) >= 10 else f"{value:.4g}"


def digits(count: int) -> Form:
    """The form with that many decimals, for columns whose values are compared.

    >>> digits(2)(1234.5)
    '1,234.50'
    """
    return lambda value: f"{value:,.{count}f}"


WHOLE, PERPLEXITY, RATIO, LOSS = digits(0), digits(2), digits(3), digits(4)
EXACT: Form = "{:.6g}".format
"""Of a value that is compared with a limit."""


def rate(value: float) -> str:
    """Of what is counted per second: whole numbers, and below 10 with the decimal that tells two of them apart.

    >>> rate(1234.5), rate(9.97), rate(3.64)
    ('1,234', '10', '3.6')
    """
    return f"{value:,.{0 if value >= 9.95 else 1}f}"


def percent(share: float, decimals: int = 0) -> str:
    """
    >>> percent(0.456), percent(1.0), percent(0.123456, 1)
    ('46 %', '100 %', '12.3 %')
    """
    return f"{share:.{decimals}%}".replace("%", " %")


SHARE: Form = partial(percent, decimals=1)


def change(before: float, after: float) -> str:
    """By how much the second value differs from the first, which is not 0.

    >>> change(30, 22), change(2, 3), change(5, 5)
    ('-26.7 %', '+50.0 %', '0.0 %')
    """
    share = after / before - 1
    return f"{share:+.1%}".replace("%", " %") if share else "0.0 %"
