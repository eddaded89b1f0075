"""The plots of a report: readable in print, without colours, and by the colour-blind. matplotlib is loaded here, late.

Two shades that differ in grey as well (of cividis), a hatch, and another shape of the mark say the same thing. Each
plot is drawn from plain values.
"""

import io
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final, Literal

from replaceme_core.report.view import Trial

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
Interval = tuple[float, float] | None
DEGREES = 180
"""In half a turn."""
_LEAST = "least for its length (block 0 always stays)"
LOSSES = {
    "residual": "residual after\nthe fit (ratio)",
    "held_out_loss": "loss on held-out\ntokens (nats)",
}


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


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A perplexity as a multiple of the original's, with its confidence interval."""

    name: str
    value: float
    interval: Interval


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """The accuracies of both models in one task, with their intervals; `chance` is that of guessing."""

    name: str
    before: float
    after: float
    intervals: tuple[Interval, Interval]
    chance: float | None


def draw_ratios(ratios: Sequence[Ratio]) -> "Figure":
    """A row for each text."""
    figure, (plot,) = axes(0.9 + 0.32 * len(ratios))
    for place, one in enumerate(ratios):
        plot.errorbar(
            one.value, place, xerr=_around(one.value, one.interval), fmt="o", color=DARK, capsize=4, markersize=6
        )
    plot.axvline(1, color=ACCENT, linestyle="--", linewidth=1)
    plot.set_yticks(range(len(ratios)), [shortened(one.name) for one in ratios])
    plot.set_ylim(len(ratios) - 0.5, -0.5)
    plot.set_xlabel("perplexity, times the original's (ratio)")
    plot.grid(axis="x", color=ACCENT, alpha=0.25)
    return figure


def draw_accuracies(tasks: Sequence[Accuracy]) -> "Figure":
    """A row for each task, the original above the result."""
    figure, (plot,) = axes(1.1 + 0.5 * len(tasks))
    sides = (("original", "o", DARK, -0.15, 0), ("result", "s", LIGHT, 0.15, 1))
    for name, shape, face, shift, side in sides:
        for place, one in enumerate(tasks):
            value = (one.before, one.after)[side]
            around = _around(100 * value, _times(100, one.intervals[side]))
            plot.errorbar(
                100 * value,
                place + shift,
                xerr=around,
                fmt=shape,
                color=DARK,
                markerfacecolor=face,
                capsize=3,
                markersize=6,
                label=name if place == 0 else None,
            )
    chances = [(100 * one.chance, place) for place, one in enumerate(tasks) if one.chance is not None]
    if chances:
        values, places = zip(*chances, strict=True)
        plot.scatter(values, places, marker="|", s=260, c=ACCENT, linewidths=2, label="guessing")
    plot.set_yticks(range(len(tasks)), [shortened(one.name) for one in tasks])
    plot.set_ylim(len(tasks) - 0.5, -0.5)
    plot.set_xlabel("accuracy (%)")
    plot.grid(axis="x", color=ACCENT, alpha=0.25)
    plot.legend(frameon=False, ncols=3, loc="lower right", bbox_to_anchor=(1, 1), borderpad=0)
    return figure


def _times(factor: float, interval: Interval) -> Interval:
    return None if interval is None else (factor * interval[0], factor * interval[1])


def _around(value: float, interval: Interval) -> list[list[float]] | None:
    """The lengths of an error bar to both sides."""
    if interval is None:
        return None
    return [[max(value - interval[0], 0)], [max(interval[1] - value, 0)]]


def draw_trials(trials: Sequence[Trial], *, limits: Sequence[float | None] = (None, None)) -> "Figure":
    """Perplexity above, accuracy below where it was measured; `limits` are those of the gate."""
    from matplotlib.ticker import MaxNLocator

    shown = [
        ("perplexity, times\nthe original's (ratio)", [one.perplexity for one in trials], limits[0]),
        ("accuracy kept\n(ratio)", [one.accuracy for one in trials], limits[1]),
    ]
    shown = [one for one in shown if any(value is not None for value in one[1])]
    figure, plots = axes(0.7 + 2.1 * len(shown), rows=len(shown))
    for (label, values, limit), plot in zip(shown, plots, strict=True):
        known = sorted(
            ((one, value) for one, value in zip(trials, values, strict=True) if value is not None),
            key=lambda pair: pair[0].blocks,
        )
        plot.plot([one.blocks for one, _ in known], [value for _, value in known], color=ACCENT, linewidth=1, zorder=1)
        kinds = (
            ("passes", "o", DARK, 36),
            ("misses the gate", "X", "white", 52),
            ("taken", "D", LIGHT, 60),
        )
        for name, shape, face, size in kinds:
            some = [(one.blocks, value) for one, value in known if _kind(one) == name]
            if some:
                places, heights = zip(*some, strict=True)
                plot.scatter(
                    places, heights, marker=shape, s=size, c=face, edgecolors=DARK, linewidths=1, label=name, zorder=3
                )
        if limit is not None:
            plot.axhline(limit, color=DARK, linestyle="--", linewidth=1, label="limit of the gate")
        plot.set_ylabel(label)
        plot.grid(axis="y", color=ACCENT, alpha=0.25)
        plot.margins(y=0.15)
        plot.legend(frameon=False, ncols=4, loc="lower right", bbox_to_anchor=(1, 1), borderpad=0, handletextpad=0.2)
    plots[-1].set_xlabel("blocks removed")
    plots[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _kind(trial: Trial) -> str:
    if trial.is_chosen:
        return "taken"
    return "passes" if trial.has_passed else "misses the gate"


def draw_influence(angles: Sequence[float], *, removed: Collection[int], name: str = "block") -> "Figure":
    """A bar for each block. `angles` are in half turns."""
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    figure, (plot,) = axes(2.9)
    for is_removed, colour, hatch in ((False, DARK, ""), (True, LIGHT, HATCH)):
        chosen = [index for index in range(len(angles)) if (index in removed) is is_removed]
        heights = [angles[index] * DEGREES for index in chosen]
        plot.bar(chosen, heights, width=0.8, color=colour, hatch=hatch, edgecolor=DARK, linewidth=0.6)
    plot.set_xlabel(f"{name} of the original model")
    plot.set_ylabel("change of direction (degrees)")
    plot.xaxis.set_major_locator(MaxNLocator(integer=True))
    plot.set_xlim(-0.8, len(angles) - 0.2)
    plot.legend(
        handles=[
            Patch(facecolor=DARK, edgecolor=DARK, label="kept"),
            Patch(facecolor=LIGHT, edgecolor=DARK, hatch=HATCH, label="removed"),
        ],
        frameon=False,
        ncols=2,
        loc="upper center",
    )
    return figure


def draw_windows(distances: Sequence[Sequence[float]], *, cuts: Sequence[tuple[int, int]]) -> "Figure":
    """`distances[i][n - 1]`, in half turns, are those across the n blocks from i on. `cuts` are start and length."""
    import numpy
    from matplotlib.ticker import MaxNLocator

    longest = max(map(len, distances))
    grid = numpy.full((longest, len(distances)), numpy.nan)
    for start, row in enumerate(distances):
        grid[: len(row), start] = numpy.asarray(row) * DEGREES
    figure, (plot,) = axes(4.4)
    extent = (-0.5, len(distances) - 0.5, 0.5, longest + 0.5)
    shown = plot.imshow(grid, origin="lower", aspect="auto", extent=extent, cmap=COLOURS, interpolation="none")
    lengths = numpy.arange(1, longest + 1)
    with_first = grid.copy()
    with_first[:, 0] = numpy.nan  # block 0 never goes
    has_any = ~numpy.isnan(with_first).all(axis=1)
    least = [int(numpy.nanargmin(row)) for row in with_first[has_any]]
    plot.scatter(least, lengths[has_any], s=14, c="white", edgecolors="black", linewidths=0.6, label=_LEAST)
    if cuts:
        starts, sizes = zip(*cuts, strict=True)
        plot.scatter(starts, sizes, s=110, marker="s", facecolors="none", edgecolors="white", linewidths=3.2)
        plot.scatter(
            starts, sizes, s=110, marker="s", facecolors="none", edgecolors="black", linewidths=1.4, label="removed"
        )
    plot.set_xlabel("first block of the window")
    plot.set_ylabel("number of blocks")
    for axis in (plot.xaxis, plot.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    figure.colorbar(shown, ax=plot, label="angle between its ends (degrees)", pad=0.02)
    plot.legend(frameon=False, loc="upper right", handletextpad=0.4, labelspacing=0.9)
    return figure


@dataclass(frozen=True, kw_only=True)
class Point:
    """A cut at `place`: its first block, or the step in which it was tried. `values` by the names of `LOSSES`."""

    place: int
    values: dict[str, float]
    is_chosen: bool
    is_estimated: bool


def draw_candidates(points: Sequence[Point], *, axis: str) -> "Figure":
    """One plot below the other for each quantity that some have. `axis` says what `place` is."""
    from matplotlib.ticker import MaxNLocator

    shown = [name for name in LOSSES if any(name in one.values for one in points)]
    figure, plots = axes(0.7 + 1.9 * len(shown), rows=len(shown))
    for name, plot in zip(shown, plots, strict=True):
        measured = [one for one in points if name in one.values]
        for exact, face in ((True, DARK), (False, "white")):
            some = [one for one in measured if not one.is_chosen and (name == "residual" or one.is_estimated != exact)]
            if name == "residual" and not exact:
                continue
            label = "" if name == "residual" else "measured" if exact else "an estimate"
            _scatter(plot, some, name, face=face, label=label)
        _scatter(plot, [one for one in measured if one.is_chosen], name, face=LIGHT, label="chosen", shape="D", size=52)
        plot.set_ylabel(LOSSES[name])
        plot.grid(axis="y", color=ACCENT, alpha=0.25)
        plot.margins(y=0.12)
        plot.legend(frameon=False, ncols=3, loc="lower right", bbox_to_anchor=(1, 1), borderpad=0, handletextpad=0.2)
    plots[-1].set_xlabel(axis)
    plots[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _scatter(
    plot: "Axes", points: Sequence[Point], name: str, *, face: str, label: str, shape: str = "o", size: int = 22
) -> None:
    if points:
        places, values = [one.place for one in points], [one.values[name] for one in points]
        plot.scatter(
            places, values, s=size, marker=shape, c=face, edgecolors=DARK, linewidths=1.0, label=label or None, zorder=3
        )


@dataclass(frozen=True, kw_only=True)
class Taken:
    """Of one stage, in the unit of the plot; `expected` is `None` where there was no plan."""

    stage: str
    actual: float
    expected: float | None


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Memory in gigabytes at a time in seconds after the start."""

    seconds: float
    gigabytes: float
    stage: str


def draw_taken(rows: Sequence[Taken], *, unit: str) -> "Figure":
    """A pair of bars for each stage: what it took, and below it what was expected."""
    figure, (plot,) = axes(1.0 + 0.45 * len(rows))
    is_planned = any(one.expected is not None for one in rows)
    wide, shift = (0.38, 0.2) if is_planned else (0.6, 0.0)
    places = [place - shift for place in range(len(rows))]
    plot.barh(places, [one.actual for one in rows], height=wide, color=DARK, edgecolor=DARK, label="taken")
    if is_planned:
        lower = [place + shift for place in range(len(rows))]
        expected = [one.expected or 0.0 for one in rows]
        plot.barh(
            lower, expected, height=wide, color=LIGHT, edgecolor=DARK, hatch=HATCH, linewidth=0.6, label="expected"
        )
        plot.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), borderpad=0)
    plot.set_yticks(range(len(rows)), [shortened(one.stage) for one in rows])
    plot.set_ylim(len(rows) - 0.5, -0.5)
    plot.set_xlim(left=0)
    plot.set_xlabel(unit)
    plot.grid(axis="x", color=ACCENT, alpha=0.25)
    return figure


def draw_memory(samples: Sequence[Sample], *, unit: str) -> "Figure":
    """A line over the time of the run; each stage begins at a dashed line with its name."""
    figure, (plot,) = axes(2.8)
    seconds = [one.seconds for one in samples]
    plot.fill_between(seconds, [one.gigabytes for one in samples], color=LIGHT, alpha=0.35, linewidth=0)
    plot.plot(seconds, [one.gigabytes for one in samples], color=DARK, linewidth=1.3)
    length = max(seconds[-1] - seconds[0], 1e-9)
    named = -1.0
    for before, one in zip([None, *samples], samples, strict=False):
        if before is None or before.stage != one.stage:
            plot.axvline(one.seconds, color=ACCENT, linestyle="--", linewidth=0.8)
            share = (one.seconds - seconds[0]) / length
            if share - named > 0.02:  # names of very short stages would be on top of each other
                plot.annotate(
                    shortened(one.stage, 12),
                    (share, 1.01),
                    xycoords="axes fraction",
                    rotation=45,
                    fontsize=8,
                    ha="left",
                    va="bottom",
                )
                named = share
    plot.set_xlim(seconds[0], seconds[0] + length)
    plot.set_ylim(bottom=0)
    plot.set_xlabel("time since the start (s)")
    plot.set_ylabel(unit)
    plot.grid(axis="y", color=ACCENT, alpha=0.25)
    return figure
