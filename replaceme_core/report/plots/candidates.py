"""What was measured of each cut that was looked at."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from replaceme_core.report.plots.style import ACCENT, DARK, LIGHT, axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

QUANTITIES = {
    "residual": "residual after\nthe fit (ratio)",
    "held_out_loss": "loss on held-out\ntokens (nats)",
}


@dataclass(frozen=True, kw_only=True)
class Point:
    """A cut at `place`: its first block, or the step in which it was tried. `values` by the names of `QUANTITIES`."""

    place: int
    values: dict[str, float]
    is_chosen: bool
    is_estimated: bool


def draw_candidates(points: Sequence[Point], *, axis: str) -> "Figure":
    """One plot below the other for each quantity that some have. `axis` says what `place` is."""
    from matplotlib.ticker import MaxNLocator

    shown = [name for name in QUANTITIES if any(name in one.values for one in points)]
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
        plot.set_ylabel(QUANTITIES[name])
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
