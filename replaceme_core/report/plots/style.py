"""How all plots look: readable in print, without colours, and by the colour-blind. matplotlib is loaded here, late.

Two shades that differ in grey as well (of cividis), a hatch, and another shape of the mark say the same thing.
"""

import io
import threading
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Format = Literal["svg", "png"]
FORMATS: Final[tuple[Format, ...]] = ("svg", "png")
DARK, LIGHT, ACCENT = "#00224e", "#c8b866", "#7d7c78"
HATCH = "////"
COLOURS = "cividis"
WIDTH = 7.5
"""Inches: a page of A4 without its margins."""
_DOTS_PER_INCH = 150
_SETTINGS = {
    "font.size": 9.0,
    "font.family": ["DejaVu Sans"],
    "svg.hashsalt": "replaceme",  # else the same plot would have other ids each time
    "hatch.linewidth": 0.8,
    "axes.axisbelow": True,
    "text.parse_math": False,  # names of strangers are no formulas
}
_FIRST_WITHOUT_SHAPE = 0x530  # Latin, Greek and Cyrillic are before it
_drawing = threading.Lock()


def can_draw() -> bool:
    """Whether matplotlib (extra `plot`) is installed; it is not loaded for that, which takes a second."""
    return find_spec("matplotlib") is not None


def axes(height: float, *, rows: int = 1) -> tuple["Figure", list["Axes"]]:
    """An empty figure of `rows` plots above each other that share their x-axis; `height` in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    found = list(figure.subplots(rows, 1, squeeze=False, sharex=True).flat)
    for one in found:
        one.spines[["top", "right"]].set_visible(False)
    return figure, found


def rendered(draw: Callable[[], "Figure"], kind: Format) -> bytes:
    """The file of a figure, the same bytes each time. One at a time: its settings are those of the process."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    written = io.BytesIO()
    with _drawing, rc_context(_SETTINGS):  # type: ignore[arg-type]
        figure = draw()
        FigureCanvasAgg(figure)
        metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
        figure.savefig(written, format=kind, dpi=_DOTS_PER_INCH, metadata=metadata)
    return written.getvalue()


def shortened(name: str, longest: int = 40) -> str:
    """A name that leaves room for the plot, in letters that the font has.

    >>> shortened("a  b"), shortened("\\u6587"), shortened("x" * 50, 5)
    ('a b', '?', 'xxxx…')
    """
    line = "".join(letter if ord(letter) < _FIRST_WITHOUT_SHAPE else "?" for letter in " ".join(name.split()))
    return line if len(line) <= longest else f"{line[: longest - 1]}…"
