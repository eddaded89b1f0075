"""Why these blocks: what each of them does, the distances of windows, the candidates, and the trials of a search."""

from functools import partial

from replaceme_core.report.forms import Form, digits, window
from replaceme_core.report.parts import Cell, Part, Plot, Section, Table
from replaceme_core.report.plots.candidates import QUANTITIES, Point, draw_candidates
from replaceme_core.report.plots.influence import draw_influence
from replaceme_core.report.plots.windows import draw_windows
from replaceme_core.report.reading import Report
from replaceme_core.request.removal import block_ranges
from replaceme_core.wording import counted

MOST_BLOCKS = 1000
MOST_CANDIDATES = 24
MOST_POINTS = 4000
MOST_SOURCES = 6
_ORDERS = ("step", "group")
"""Columns beside the blocks of a candidate, where any row has them."""
_COLUMNS: tuple[tuple[str, str, Form], ...] = (
    ("distance", "Distance before the fit (half turns)", digits(4)),
    ("influence", "Influence (1 - cosine)", digits(4)),
    ("residual", "Residual after the fit (ratio)", digits(4)),
    ("plain_loss", "Loss without maps (nats)", digits(4)),
    ("held_out_loss", "Loss on held-out tokens (nats)", digits(4)),
)


def choice(report: Report) -> Section | None:
    """What the choice rests on."""
    parts = [*_influence(report), *_windows(report), *_candidates(report), *_disagreements(report)]
    if not parts:
        return None
    return Section(id="choice", title="Which blocks, and why", parts=parts)


def _removed(report: Report) -> str:
    return block_ranges(report.blocks("removed_blocks")) or "none"


def _influence(report: Report) -> list[Part]:
    angles = [report.number("layers", row, "distance") for row in report.rows("layers", most=MOST_BLOCKS)]
    known = [angle for angle in angles if angle is not None]
    if not known or len(known) != len(angles):
        return []
    removed = frozenset(report.blocks("removed_blocks"))
    return [
        Plot(
            name="influence",
            title="How much each block changes",
            alt=f"A bar for each of {len(known)} blocks, hatched where it was removed: {_removed(report)}.",
            reading="A bar is the angle by which a block turns the hidden state of a token on average; a block with a "
            "low bar adds little that others could not do. Hatched blocks were removed.",
            draw=partial(draw_influence, known, removed=removed),
        )
    ]


def _windows(report: Report) -> list[Part]:
    found = report.at("windows", "distances")
    rows = [report.numbers("windows", "distances", row) for row in range(len(found) if isinstance(found, list) else 0)]
    if not rows or not all(rows) or len(rows) > MOST_BLOCKS or sum(map(len, rows)) > 4 * MOST_POINTS:
        return []
    removed = _runs(report.blocks("removed_blocks"))
    return [
        Plot(
            name="windows",
            title="Distance between the ends of every window",
            alt=f"A heat map of {len(rows)} blocks, with a cell for each first block and each number of blocks; "
            f"squares mark what was removed: {_removed(report)}.",
            reading="A cell is a window of neighbouring blocks: its first block is below it, its length to the left. "
            "The darker a cell, the less the hidden state turns between the ends of the window, before anything "
            "compensates for its removal. Squares: the runs of blocks that were removed; dots: the least for each "
            "length.",
            draw=partial(draw_windows, rows, cuts=removed),
        )
    ]


def _runs(blocks: list[int]) -> list[tuple[int, int]]:
    """Neighbouring blocks together: the first, and how many.

    >>> _runs([3, 12, 13])
    [(3, 1), (12, 2)]
    """
    runs: list[tuple[int, int]] = []
    for block in sorted(blocks):
        if runs and sum(runs[-1]) == block:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((block, 1))
    return runs


def _candidates(report: Report) -> list[Part]:
    rows = list(report.rows("candidates", most=MOST_POINTS))
    if not rows:
        return []
    ranked = sorted(rows, key=partial(_rank, report))
    shown = ranked[:MOST_CANDIDATES]
    columns = [one for one in _COLUMNS if any(report.number("candidates", row, one[0]) is not None for row in shown)]
    orders = [name for name in _ORDERS if any(report.number("candidates", row, name) for row in rows)]
    sources = report.names("candidates", shown[0], "source_losses")[:MOST_SOURCES]
    sources = sources if len(sources) > 1 else []
    cells: list[list[Cell]] = []
    for row in shown:
        base = ("candidates", row)
        mark = " (chosen)" if report.is_true(*base, "chosen") else ""
        estimate = ("about ",) if report.is_true(*base, "estimated") else ()
        cells.append(
            [
                (*window(report, *base), mark),
                *((report.figure(*base, name),) for name in orders),
                *(
                    (*(estimate if name == "held_out_loss" else ()), report.figure(*base, name, as_=form))
                    for name, _, form in columns
                ),
                *((report.figure(*base, "source_losses", name, as_=digits(4)),) for name in sources),
            ]
        )
    some = f"The {len(shown)} best of" if len(shown) < len(rows) else "All"
    table = Table(
        caption=f"{some} {counted(len(rows), 'candidates')}",
        header=(
            "Blocks",
            *(name.replace("_", " ").capitalize() for name in orders),
            *(heading for _, heading, _ in columns),
            *(f"Loss on {name}" for name in sources),
        ),
        rows=cells,
        marked=frozenset(place for place, row in enumerate(shown) if report.is_true("candidates", row, "chosen")),
        note="Less is better in all columns. A residual is relative to the stream at the end of the cut. About: an "
        "estimate from a part of the held-out text.",
    )
    return [table, *_candidates_plot(report, rows)]


def _rank(report: Report, row: int) -> tuple[bool, float, float, float, float]:
    values = [report.number("candidates", row, name) for name in ("step", "held_out_loss", "residual", "influence")]
    step, loss, residual, influence = (float("inf") if value is None else value for value in values)
    return not report.is_true("candidates", row, "chosen"), step, loss, residual, influence


def _candidates_plot(report: Report, rows: list[int]) -> list[Part]:
    order = next(
        (name for name in ("step", "group") if any(report.number("candidates", row, name) for row in rows)), "start"
    )
    points = []
    for row in rows:
        base = ("candidates", row)
        place = report.number(*base, order)
        values = {name: value for name in QUANTITIES if (value := report.number(*base, name)) is not None}
        if place is not None and values:
            points.append(
                Point(
                    place=int(place),
                    values=values,
                    is_chosen=report.is_true(*base, "chosen"),
                    is_estimated=report.is_true(*base, "estimated"),
                )
            )
    if not points:
        return []
    axis = {"start": "first block of the cut", "step": "step of the choice", "group": "group of cuts"}[order]
    return [
        Plot(
            name="candidates",
            title="What the candidates would cost",
            alt=f"A mark for each of {len(points)} candidates by the {axis}; diamonds were chosen. The values of the "
            "best are in the tables of the report.",
            reading="A mark is a cut that was looked at; the lower, the less is lost without its blocks. The residual "
            "is what the fit leaves of the difference, the loss is that of the smaller model on text that was set "
            "aside. Diamonds were chosen; hollow circles are estimates from fewer tokens.",
            draw=partial(draw_candidates, points, axis=axis),
        )
    ]


def _disagreements(report: Report) -> list[Part]:
    rows = [
        [
            (report.words("disagreements", row, "source"),),
            window(report, "disagreements", row),
            (report.figure("disagreements", row, "loss", as_=digits(4)),),
            (report.figure("disagreements", row, "chosen_loss", as_=digits(4)),),
        ]
        for row in report.rows("disagreements")
    ]
    if not rows:
        return []
    return [
        Table(
            caption="Texts that alone would have chosen other blocks",
            header=("Text", "Its choice", "Loss of its choice (nats)", "Loss of the chosen blocks (nats)"),
            rows=rows,
            note="The choice weighs all texts.",
        )
    ]
