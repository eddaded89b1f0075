"""How far each block turns the stream, and which blocks are gone."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from replaceme_core.report.plots.style import DARK, HATCH, LIGHT, axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEGREES = 180
"""In half a turn."""


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
