"""The distance between the ends of every window of neighbouring blocks."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from replaceme_core.report.plots.influence import DEGREES
from replaceme_core.report.plots.style import COLOURS, axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LEAST = "least for its length (block 0 always stays)"


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
