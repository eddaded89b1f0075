"""Forms of numbers and cells that several sections use."""

from collections.abc import Callable, Sequence

from replaceme_core.report.parts import Cell
from replaceme_core.report.reading import Piece, Report, Shown, Step, pointer
from replaceme_core.request.removal import block_ranges

Form = Callable[[float], str]


def digits(count: int) -> Form:
    """With so many decimals.

    >>> digits(2)(1234.5)
    '1,234.50'
    """
    return lambda value: f"{value:,.{count}f}"


def share(value: float) -> str:
    """
    >>> share(0.5), share(0.123456)
    ('50.0 %', '12.3 %')
    """
    return f"{value:.1%}".replace("%", " %")


def interval(report: Report, base: Sequence[Step], low: str, high: str, *, form: Form) -> Cell:
    """Such as " (1.2 to 1.4)"; nothing where there is none."""
    if report.number(*base, low) is None or report.number(*base, high) is None:
        return ()
    return (" (", report.figure(*base, low, as_=form), " to ", report.figure(*base, high, as_=form), ")")


def count_of(report: Report, *path: Step) -> Piece:
    """How many a list has."""
    found = report.numbers(*path)
    return Shown(text=f"{len(found)}", value=len(found), places=(pointer(path),))


def ranges_of(report: Report, *path: Step) -> Piece:
    """A list of blocks in few words."""
    return Shown(text=block_ranges(report.blocks(*path)) or "none", value=None, places=(pointer(path),))


def window(report: Report, *base: Step) -> Cell:
    """The blocks of a cut."""
    first, last = report.number(*base, "start"), report.number(*base, "end")
    if first == last:
        return (report.figure(*base, "start"),)
    return (report.figure(*base, "start"), "-", report.figure(*base, "end"))
