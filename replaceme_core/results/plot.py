"""The picture in the model card: how much each layer of the original changes, and which of them are gone."""

import logging
from collections.abc import Collection, Sequence
from pathlib import Path

PICTURE = "layers.png"
_KEPT, _REMOVED = "#4c78a8", "#e45756"
_DEGREES = 180

logger = logging.getLogger(__name__)


def draw_layers(directory: Path, angles: Sequence[float], *, removed: Collection[int]) -> str | None:
    """Write the picture and return the name of its file; `None` where matplotlib (extra `plot`) is not installed.

    `angles` are in half turns, one for each layer.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        logger.info("the card gets no picture: matplotlib is not installed (pip install 'replaceme[plot]')")
        return None
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    colours = [_REMOVED if layer in removed else _KEPT for layer in range(len(angles))]
    axes.bar(range(len(angles)), [angle * _DEGREES for angle in angles], color=colours, width=0.8)
    axes.set_xlabel("layer of the original model")
    axes.set_ylabel("change of direction (degrees)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(-0.8, len(angles) - 0.2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(
        handles=[Patch(color=_KEPT, label="kept"), Patch(color=_REMOVED, label="removed")], frameon=False, ncols=2
    )
    figure.savefig(directory / PICTURE, dpi=130, metadata={"Software": None})
    return PICTURE
