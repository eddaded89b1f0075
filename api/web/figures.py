"""Numbers, times and choices as people read them, each with its unit. Filters of the templates."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from urllib.parse import urlencode

from replaceme_core.admission.removal import block_ranges
from replaceme_core.calibration_spec import SELF_GENERATED
from replaceme_core.spec import CompressionSpec

_MINUTE, _HOUR, _DAY = 60, 3600, 86_400
_DECIMAL_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
_DIGITS = 3  # of a number that is not whole
NONE = "\N{EN DASH}"
"""Where there is no value."""


def duration(seconds: float | None) -> str:
    """
    >>> [duration(s) for s in (0.001, 0.4, 59.6, 61, 3700, 200_000, None)]
    ['< 0.1 s', '0.4 s', '1 min 00 s', '1 min 01 s', '1 h 01 min', '2 d 7 h', '–']
    """
    if seconds is None:
        return NONE
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


def between(start: datetime | None, end: datetime | None) -> str:
    """The time from one moment to another; nothing without both."""
    return NONE if start is None or end is None else duration((end - start).total_seconds())


def moment(at: datetime | None) -> str:
    """
    >>> moment(datetime(2026, 11, 27, 8, 5, tzinfo=UTC))
    '2026-11-27 08:05:00 UTC'
    """
    return NONE if at is None else at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


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


def fixed(value: float | None) -> str:
    """A number of a column whose values are compared: all have as many digits."""
    return NONE if value is None else f"{value:,.4f}"


def measured(value: float | None, unit: str) -> str:
    """A measured value with its unit.

    >>> measured(269_060_552, "bytes"), measured(75, "s"), measured(12.3456, "ratio"), measured(512, "tokens")
    ('269 MB', '1 min 15 s', '12.35', '512 tokens')
    """
    if value is None:
        return NONE
    match unit:
        case "bytes":
            return size(value)
        case "s":
            return duration(value)
        case "ratio" | "flag" | "":
            return number(value)
        case _:
            return f"{number(value)} {unit}"


def change(before: float | None, after: float | None) -> str:
    """By how much the second value differs from the first.

    >>> change(30, 22), change(2, 3), change(0, 1), change(5, 5)
    ('-26.7 %', '+50.0 %', '', '0.0 %')
    """
    if not before or after is None:
        return ""
    share = after / before - 1
    return f"{share:+.1%}".replace("%", " %") if share else "0.0 %"


def percent(share: float | None) -> str:
    """
    >>> percent(0.456), percent(1.0)
    ('46 %', '100 %')
    """
    return NONE if share is None else f"{share:.0%}".replace("%", " %")


def removal(spec: CompressionSpec) -> str:
    """What a job removes, as its request says it."""
    if spec.greatest_ratio is not None:
        most = "at most " if spec.searches else ""
        return f"{most}{spec.greatest_ratio:.4g} of the blocks"
    return f"blocks {block_ranges(spec.drop or ())}"


def calibration(spec: CompressionSpec) -> str:
    """The names of all texts, with their shares."""
    names = []
    for source in spec.calibration.sources or ():
        name = source.dataset or SELF_GENERATED
        names.append(name if source.share is None else f"{name} {percent(source.share)}")
    return ", ".join(names) or str(spec.calibration.dataset or "")


def method(spec: CompressionSpec) -> str:
    """The name of the method, or who decides it."""
    return str(spec.method.name or "decided by the worker")


def sentence(text: str) -> str:
    """
    >>> sentence("the API has no key")
    'The API has no key.'
    """
    return f"{text[:1].upper()}{text[1:]}" + ("" if text.endswith((".", "!", "?")) else ".")


def short_id(job_id: str) -> str:
    """The first part of an id."""
    return job_id.partition("-")[0]


def pairs(values: Mapping[str, object]) -> str:
    """
    >>> pairs({"worker": "a:1", "stage": "solve"})
    'worker: a:1, stage: solve'
    """
    return ", ".join(f"{name}: {value}" for name, value in values.items())


def ranges(blocks: Sequence[int]) -> str:
    """The blocks as a short list of ranges."""
    return block_ranges(blocks) or NONE


def query(pairs: Iterable[tuple[str, object]]) -> str:
    """The query of an address; a list is repeated, and what is empty is left out.

    >>> query([("status", ["queued", "running"]), ("model", "a/b"), ("cursor", "")])
    'status=queued&status=running&model=a%2Fb'
    """
    return urlencode([(name, value) for name, value in pairs if value], doseq=True)


FILTERS = (
    *(duration, between, moment, size, number, fixed, measured, change, percent),
    *(removal, calibration, method, sentence, short_id, pairs, ranges, query),
)
