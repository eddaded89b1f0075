"""What the run took, beside what it was expected to take: time and memory of its stages, memory over time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from replaceme_core.report.plots.style import ACCENT, DARK, HATCH, LIGHT, axes, shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
