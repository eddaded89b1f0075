"""What the result is worth beside the original: perplexity on each text, accuracy in each task."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from replaceme_core.report.plots.style import ACCENT, DARK, LIGHT, axes, shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Interval = tuple[float, float] | None


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
