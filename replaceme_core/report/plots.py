"""The plots of a report: readable in print, without colours, and by the colour-blind. matplotlib is loaded here, late.

Two shades that differ in grey as well (of cividis), a hatch, and another shape of the mark say the same thing. Each
function takes from the report what it draws, and returns `None` where that is not there.
"""

import io
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final, Literal

from replaceme_core.report import view
from replaceme_core.report.reading import Report
from replaceme_core.request.removal import block_ranges, runs_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Format = Literal["svg", "png"]
FORMATS: Final[tuple[Format, ...]] = ("svg", "png")
_MOST_BLOCKS, _MOST_WINDOWS, _MOST_ROWS, _MOST_SAMPLES = 1000, 16_000, 40, 2000
_DARK, _LIGHT, _ACCENT = "#00224e", "#c8b866", "#7d7c78"
_HATCH = "////"
_COLOURS = "cividis"
_MARKS = {
    "measured": ("o", _DARK, 22),
    "chosen": ("D", _LIGHT, 52),
    "passes": ("o", _DARK, 36),
    "misses the gate": ("X", "white", 52),
    "taken": ("D", _LIGHT, 60),
}
"""Shape, shade and size for each kind of mark."""
_WIDTH = 7.5
"""Inches: a page of A4 without its margins."""
_DOTS_PER_INCH = 150
_PIXELS_PER_INCH = 96
"""Of a browser."""
_SETTINGS = {
    "font.size": 9.0,
    "font.family": ["DejaVu Sans"],
    "svg.hashsalt": "replaceme",  # else the same plot would have other ids each time
    "hatch.linewidth": 0.8,
    "axes.axisbelow": True,
    "text.parse_math": False,  # names of strangers are no formulas
}
_FIRST_WITHOUT_SHAPE = 0x530  # Latin, Greek and Cyrillic are before it
_DEGREES = 180
"""In half a turn."""
_GIGABYTE = 1e9
_IN_TABLES = "the values are in the tables of the report."
_drawing = threading.Lock()
Interval = tuple[float, float] | None
Mark = tuple[float, float, str]
"""Its places on both axes, and its kind."""


@dataclass(frozen=True, kw_only=True)
class Plot:
    """`name` is that of its file, `alt` what it shows for those who cannot see it, `reading` how it is read.

    `inches` is its height, which those who show it keep free until it is drawn. It has plots above each other, one for
    each label in `up`, over one x-axis, which is `across` and counts if it `is_whole`; with `names` it is one plot with
    a row for each of them. `fill` draws into these.
    """

    name: str
    inches: float
    title: str
    alt: str
    reading: str
    across: str
    up: Sequence[str] = ("",)
    names: Sequence[str] = ()
    is_whole: bool = False
    fill: Callable[..., None]

    @property
    def pixels(self) -> tuple[int, int]:
        """Width and height, of which a browser keeps the proportion."""
        return round(_WIDTH * _PIXELS_PER_INCH), round(self.inches * _PIXELS_PER_INCH)

    def draw(self) -> "Figure":
        """A new figure, for which the settings of matplotlib are those of the moment."""
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator

        figure = Figure(figsize=(_WIDTH, self.inches), layout="constrained")
        plots = list(figure.subplots(len(self.up), 1, squeeze=False, sharex=True).flat)
        for plot, label in zip(plots, self.up, strict=True):
            plot.spines[["top", "right"]].set_visible(False)
            plot.set_ylabel(label)
            plot.grid(axis="x" if self.names else "y", color=_ACCENT, alpha=0.25)
        if self.names:
            plots[0].set_yticks(range(len(self.names)), [shortened(name) for name in self.names])
            plots[0].set_ylim(len(self.names) - 0.5, -0.5)
        plots[-1].set_xlabel(self.across)
        if self.is_whole:
            plots[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        self.fill(*plots)
        return figure


def can_draw() -> bool:
    """Whether matplotlib (extra `plot`) is installed; it is not loaded for that, which takes a second."""
    return find_spec("matplotlib") is not None


def rendered(plot: Plot, kind: Format) -> bytes:
    """The file of a plot, the same bytes each time. One at a time: its settings are those of the process."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    written = io.BytesIO()
    with _drawing, rc_context(_SETTINGS):  # type: ignore[arg-type]
        figure = plot.draw()
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


def _legend(plot: "Axes") -> None:
    """Above the plot, to the right."""
    plot.legend(frameon=False, ncols=4, loc="lower right", bbox_to_anchor=(1, 1), borderpad=0, handletextpad=0.4)


def _draw_rows(
    plot: "Axes", values: Sequence[tuple[float, Interval]], *, shape: str = "o", face: str = _DARK, shift: float = 0
) -> None:
    """A mark with its interval in each row, `shift` below its middle."""
    for row, (value, interval) in enumerate(values):
        around = None if interval is None else [[max(value - interval[0], 0)], [max(interval[1] - value, 0)]]
        plot.errorbar(
            value, row + shift, xerr=around, fmt=shape, color=_DARK, markerfacecolor=face, capsize=3, markersize=6
        )


def _draw_marks(plot: "Axes", marks: Sequence[Mark]) -> None:
    """Marks with a legend of their kinds."""
    for kind, (shape, face, size) in _MARKS.items():
        some = [(x, y) for x, y, one in marks if one == kind]
        if some:
            places, values = zip(*some, strict=True)
            plot.scatter(
                places, values, marker=shape, s=size, c=face, edgecolors=_DARK, linewidths=1, label=kind, zorder=3
            )
    plot.margins(y=0.15)
    _legend(plot)


def perplexities(report: Report) -> Plot | None:
    """A row for each text."""
    found = [
        (report.text(*base, "name"), (ratio, report.bounds(*base, low="ratio_low", high="ratio_high")))
        for base in report.places("texts", most=_MOST_ROWS)
        if (ratio := report.number(*base, "ratio")) is not None
    ]
    if not found:
        return None

    names, values = zip(*found, strict=True)

    def fill(plot: "Axes") -> None:
        _draw_rows(plot, values)
        plot.axvline(1, color=_ACCENT, linestyle="--", linewidth=1)

    return Plot(
        name="perplexity",
        inches=0.9 + 0.32 * len(found),
        across="perplexity, times the original's (ratio)",
        names=names,
        title="Perplexity as a multiple of the original's",
        alt=f"A mark with an error bar for each of {len(found)} texts; {_IN_TABLES}",
        reading="The further right of the dashed line (as good as the original), the more is lost on that "
        "text. Bars are the 95 % confidence interval: two texts whose bars overlap are not surely different.",
        fill=fill,
    )


def accuracies(report: Report) -> Plot | None:
    """A row for each task, the original above the result."""
    found = [base for base in report.places("tasks", most=_MOST_ROWS) if view.has_accuracy(report, base)]
    if not found:
        return None

    def fill(plot: "Axes") -> None:
        from matplotlib.ticker import PercentFormatter

        plot.xaxis.set_major_formatter(PercentFormatter(1, symbol=None))
        sides = (("before", "original", "o", _DARK, -0.15), ("after", "result", "s", _LIGHT, 0.15))
        for side, name, shape, face, shift in sides:
            values = [
                (report.number(*base, side, "accuracy") or 0.0, report.bounds(*base, side, low="low", high="high"))
                for base in found
            ]
            _draw_rows(plot, values, shape=shape, face=face, shift=shift)
            plot.plot([], [], shape, color=_DARK, markerfacecolor=face, label=name)
        chances = [
            (chance, at) for at, one in enumerate(found) if (chance := report.number(*one, "chance")) is not None
        ]
        if chances:
            values_of, rows = zip(*chances, strict=True)
            plot.scatter(values_of, rows, marker="|", s=260, c=_ACCENT, linewidths=2, label="guessing")
        _legend(plot)

    return Plot(
        name="tasks",
        inches=1.1 + 0.5 * len(found),
        across="accuracy (%)",
        names=[report.text(*base, "name") for base in found],
        title="Accuracy in each task",
        alt=f"Two marks with error bars for each of {len(found)} tasks; {_IN_TABLES}",
        reading="Circle: the original; square: the result; a short upright line: guessing. Bars are 95 % "
        "confidence intervals: where those of both overlap, the difference may be chance.",
        fill=fill,
    )


def trials(report: Report) -> Plot | None:
    """The loss above, accuracy below where it was measured."""
    found = view.trials_of(report)
    loss = "distance of\nembeddings (1 - cosine)" if report.of_images else "perplexity, times\nthe original's (ratio)"
    losses: list[Mark] = []
    accuracies: list[Mark] = []
    for one in found:
        kind = "taken" if one.is_chosen else "passes" if one.has_passed else "misses the gate"
        losses += [] if one.loss is None else [(one.blocks, one.loss, kind)]
        accuracies += [] if one.accuracy is None else [(one.blocks, one.accuracy, kind)]
    known = [
        (loss, losses, (view.LOSS_OF[report.of_images], "max")),
        ("accuracy kept\n(ratio)", accuracies, ("accuracy_kept", "min")),
    ]
    shown = [(label, marks, report.number("spec", "gate", *limit)) for label, marks, limit in known if marks]
    if not shown:
        return None

    def fill(*plots: "Axes") -> None:
        for plot, (_, marks, limit) in zip(plots, shown, strict=True):
            plot.plot([x for x, _, _ in marks], [y for _, y, _ in marks], color=_ACCENT, linewidth=1, zorder=1)
            if limit is not None:
                plot.axhline(limit, color=_DARK, linestyle="--", linewidth=1, label="limit of the gate")
            _draw_marks(plot, marks)

    return Plot(
        name="trials",
        inches=0.7 + 2.1 * len(shown),
        across="blocks removed",
        up=[label for label, _, _ in shown],
        is_whole=True,
        title="What each depth costs",
        alt=f"A mark for each of {len(found)} trials by the number of blocks removed; {_IN_TABLES}",
        reading="Further right is smaller; in the upper plot lower is better, in that of accuracy higher. "
        "Dashed lines: the limits of the gate; crosses miss it; the diamond was taken.",
        fill=fill,
    )


def influence(report: Report) -> Plot | None:
    """A bar for each block."""
    angles = [report.number(*base, "distance") for base in report.places("layers", most=_MOST_BLOCKS)]
    known = [angle * _DEGREES for angle in angles if angle is not None]
    if not known or len(known) != len(angles):
        return None
    removed = set(report.blocks("removed_blocks"))

    def fill(plot: "Axes") -> None:
        for is_removed, name, colour, hatch in ((False, "kept", _DARK, ""), (True, "removed", _LIGHT, _HATCH)):
            blocks = [block for block in range(len(known)) if (block in removed) is is_removed]
            heights = [known[block] for block in blocks]
            plot.bar(blocks, heights, color=colour, hatch=hatch, edgecolor=_DARK, linewidth=0.6, label=name)
        plot.set_xlim(-0.8, len(known) - 0.2)
        _legend(plot)

    return Plot(
        name="influence",
        inches=2.9,
        across="block of the original model",
        up=["change of direction (degrees)"],
        is_whole=True,
        title="How much each block changes",
        alt=f"A bar for each of {len(known)} blocks, hatched where it was removed: {removed_blocks(report)}.",
        reading="A bar is the angle by which a block turns a hidden state on average; a block with a "
        "low bar adds little that others could not do. Hatched blocks were removed.",
        fill=fill,
    )


def windows(report: Report) -> Plot | None:
    """A cell for each run of neighbouring blocks: how far the stream turns between its ends."""
    place = ("windows", "distances")
    found = report.at(*place)
    rows = [report.numbers(*place, row) for row in range(len(found) if isinstance(found, list) else 0)]
    if not rows or not all(rows) or len(rows) > _MOST_BLOCKS or sum(map(len, rows)) > _MOST_WINDOWS:
        return None
    runs = runs_of(report.blocks("removed_blocks"))

    def fill(plot: "Axes") -> None:
        import numpy
        from matplotlib.ticker import MaxNLocator

        longest = max(map(len, rows))
        grid = numpy.full((longest, len(rows)), numpy.nan)
        for start, row in enumerate(rows):
            grid[: len(row), start] = numpy.asarray(row) * _DEGREES
        plot.grid(visible=False)
        plot.yaxis.set_major_locator(MaxNLocator(integer=True))
        extent = (-0.5, len(rows) - 0.5, 0.5, longest + 0.5)
        shown = plot.imshow(grid, origin="lower", aspect="auto", extent=extent, cmap=_COLOURS, interpolation="none")
        plot.figure.colorbar(shown, ax=plot, label="angle between its ends (degrees)", pad=0.02)
        grid[:, 0] = numpy.nan  # block 0 always stays
        has_any = ~numpy.isnan(grid).all(axis=1)
        least = numpy.nanargmin(grid[has_any], axis=1)
        lengths = numpy.arange(1, longest + 1)[has_any]
        label = "least for its length (block 0 always stays)"
        plot.scatter(least, lengths, s=14, c="white", edgecolors="black", linewidths=0.6, label=label)
        starts, sizes = [first for first, _ in runs], [last - first + 1 for first, last in runs]
        for colour, width, name in (("white", 3.2, None), ("black", 1.4, "removed")):
            plot.scatter(
                starts, sizes, s=110, marker="s", facecolors="none", edgecolors=colour, linewidths=width, label=name
            )
        plot.legend(frameon=False, loc="upper right", handletextpad=0.4, labelspacing=0.9)

    return Plot(
        name="windows",
        inches=4.4,
        across="first block of the window",
        up=["number of blocks"],
        is_whole=True,
        title="Distance between the ends of every window",
        alt=f"A heat map of {len(rows)} blocks, with a cell for each first block and each number of blocks; "
        f"squares mark what was removed: {removed_blocks(report)}.",
        reading="A cell is a window of neighbouring blocks: its first block is below it, its length to the left. "
        "The darker a cell, the less the hidden state turns between the ends of the window, before anything "
        "compensates for its removal. Squares: the runs of blocks that were removed; dots: the least for each "
        "length.",
        fill=fill,
    )


def removed_blocks(report: Report) -> str:
    """As a short list of ranges."""
    return block_ranges(report.blocks("removed_blocks")) or "none"


def candidates(report: Report) -> Plot | None:
    """One plot for each loss that some have, by the first block of the cut or by the step in which it was tried."""
    of_images = report.of_images
    loss = "distance on held-out\nimages (1 - cosine)" if of_images else "loss on held-out\ntokens (nats)"
    labels = {"residual": "residual after\nthe fit (ratio)", "held_out_loss": loss}
    axes = {"step": "step of the choice", "group": "group of cuts"}
    rows = report.places("candidates", most=view.MOST_CANDIDATES)
    order = next((name for name in view.ORDERS if any(report.number(*base, name) for base in rows)), "start")
    across = axes.get(order, "first block of the cut")
    found = [
        base
        for base in rows
        if report.number(*base, order) is not None and any(report.number(*base, name) is not None for name in labels)
    ]
    if not found:
        return None

    marks = {
        label: [
            (report.number(*base, order) or 0.0, value, "chosen" if report.is_true(*base, "chosen") else "measured")
            for base in found
            if (value := report.number(*base, name)) is not None
        ]
        for name, label in labels.items()
    }
    shown = {label: some for label, some in marks.items() if some}

    def fill(*plots: "Axes") -> None:
        for plot, some in zip(plots, shown.values(), strict=True):
            _draw_marks(plot, some)

    return Plot(
        name="candidates",
        inches=0.7 + 1.9 * len(shown),
        across=across,
        up=list(shown),
        is_whole=True,
        title="What the candidates would cost",
        alt=f"A mark for each of {len(found)} candidates by the {across}; diamonds were chosen. The values "
        "of the best are in the tables of the report.",
        reading="A mark is a cut that was looked at; the lower, the less is lost without its blocks. The residual "
        "is what the fit leaves of the difference; below it is what the smaller model loses on "
        f"{'images' if of_images else 'text'} set aside. Diamonds were chosen.",
        fill=fill,
    )


def stages(report: Report, of: Literal["seconds", "peak_bytes"]) -> Plot | None:
    """A pair of bars for each stage: what it took of time or memory, and below it what was expected."""
    found = report.places("stages", most=view.MOST_STAGES)
    if not found:
        return None
    is_planned = bool(report.places("plan", "stages"))
    across, scale = ("time (s)", 1.0) if of == "seconds" else ("peak memory (GB)", _GIGABYTE)

    def fill(plot: "Axes") -> None:
        height, shift = (0.38, 0.2) if is_planned else (0.6, 0.0)
        bars = [("taken", [report.number(*base, of) for base in found], -shift, _DARK, "")]
        if is_planned:
            expected = [report.number(*view.planned(report, base), f"expected_{of}") for base in found]
            bars.append(("expected", expected, shift, _LIGHT, _HATCH))
        for label, values, below, colour, hatch in bars:
            places, widths = [row + below for row in range(len(found))], [(one or 0.0) / scale for one in values]
            plot.barh(places, widths, height, color=colour, edgecolor=_DARK, hatch=hatch, linewidth=0.6, label=label)
        if is_planned:
            _legend(plot)
        plot.set_xlim(left=0)

    name, title, what = {
        "seconds": ("times", "Time of each stage", "time that it took"),
        "peak_bytes": ("peaks", "Peak memory of each stage", "most memory that it had at once"),
    }[of]
    below = "; the hatched one below it is what the plan expected" if is_planned else ""
    return Plot(
        name=name,
        inches=1.0 + 0.45 * len(found),
        across=across,
        names=[report.text(*base, "name") for base in found],
        title=title,
        alt=f"{title}: bars for {len(found)} stages; {_IN_TABLES}",
        reading=f"The solid bar of a stage is the {what}{below}.",
        fill=fill,
    )


def healing(report: Report) -> Plot | None:
    """The loss of the training above, and that on the panel below, over the tokens that were trained on."""
    losses = [
        (tokens, loss)
        for base in report.places("healing", "losses", most=_MOST_SAMPLES)
        if (tokens := report.number(*base, "tokens")) is not None and (loss := report.number(*base, "loss")) is not None
    ]
    judged = report.places("healing", "judged", most=_MOST_SAMPLES)
    sources = report.names(*judged[0], "sources")[: view.MOST_SOURCES] if judged else []
    if len(losses) < 2 or len(judged) < 2:
        return None

    def fill(above: "Axes", below: "Axes") -> None:
        above.plot(*zip(*losses, strict=True), color=_DARK, linewidth=1.3)
        for source, shape in zip(sources, "osD^vX", strict=False):
            first = report.number(*judged[0], "sources", source)
            known = [
                (tokens, loss - first)
                for base in judged
                if first is not None
                and (tokens := report.number(*base, "tokens")) is not None
                and (loss := report.number(*base, "sources", source)) is not None
            ]
            (line,) = below.plot(*zip(*known, strict=True), f"-{shape}", color=_ACCENT, markerfacecolor=_LIGHT)
            line.set_label(shortened(source, 20))
        below.axhline(0, color=_ACCENT, linestyle="--", linewidth=1)
        _legend(below)
        above.set_ylim(bottom=0)

    return Plot(
        name="healing",
        inches=4.6,
        across="tokens trained on",
        up=["divergence (nats)", "change of loss (nats)"],
        title="The course of the training",
        alt=f"A line through {len(losses)} losses of the training, and one with {len(judged)} marks for each of "
        f"{len(sources)} held-out texts; the values are in replaceme.json.",
        reading="Above: how far the next token's distribution is from the original's, on the text of the training. "
        "Below: how much the loss on each text of the panel has changed, which nothing is trained on; less is better. "
        "The best state on average is kept.",
        fill=fill,
    )
