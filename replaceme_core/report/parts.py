"""What a page consists of: sections with tables, pictures, lists of facts, and answers side by side."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from replaceme_core.report.reading import Piece

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Cell = tuple[Piece, ...]


@dataclass(frozen=True, kw_only=True)
class Table:
    """`rows` have as many cells as `header` has names; the first is the heading of its row. `marked` rows stand out.

    All columns but the first and those of `wordy` are numbers.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    wordy: frozenset[int] = frozenset()
    marked: frozenset[int] = frozenset()
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Names with their values; `caption` is said to screen readers."""

    caption: str
    rows: Sequence[tuple[str, Cell]]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One prompt, and what both models made of it; `notes` on either, empty where there is nothing to note."""

    prompt: Cell
    before: Cell
    after: Cell
    notes: tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Code:
    """A text to copy; `place` is where the report has it."""

    caption: str
    text: str
    place: str


@dataclass(frozen=True, kw_only=True)
class Plot:
    """`name` is that of its file, `alt` what it shows for those who cannot see it, `reading` how it is read."""

    name: str
    title: str
    alt: str
    reading: str
    draw: Callable[[], "Figure"]


Part = Table | Facts | Code | Plot | Answer


@dataclass(frozen=True, kw_only=True)
class Section:
    """`note` is a sentence or two on what it is about."""

    id: str
    title: str
    note: str = ""
    parts: Sequence[Part] = field(default_factory=tuple)
