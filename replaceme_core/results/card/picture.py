"""The picture in the model card: how much each layer of the original changes, and which of them are gone."""

import logging
from functools import partial
from pathlib import Path

from replaceme_core.report_page.plots.influence import draw_influence
from replaceme_core.report_page.plots.style import can_draw, rendered
from replaceme_core.results.outcome import RunOutcome

PICTURE = "layers.png"

logger = logging.getLogger(__name__)


def picture(outcome: RunOutcome, directory: Path) -> str:
    """Draw it into `directory`, and return what the card says of it.

    Empty where the angles were not computed, and where matplotlib (extra `plot`) is not installed.
    """
    angles = outcome.layer_angles
    if angles is None:
        return ""
    if not can_draw():
        logger.info("card and report get no pictures: matplotlib is not installed (pip install 'replaceme[plot]')")
        return ""
    draw = partial(draw_influence, angles.blocks, removed=frozenset(outcome.removed), name="layer")
    (directory / PICTURE).write_bytes(rendered(draw, "png"))
    return (
        f"![How much each layer of the original changes, and which layers were removed]({PICTURE})\n\n"
        "By how many degrees each layer of the original turns the hidden state of a token on average: layers that turn "
        "it little add little that the others could not do. Hatched layers were removed."
    )
