"""What a search for the deepest cut has tried: blocks against perplexity and accuracy."""

import math
from collections.abc import Sequence
from functools import partial

from replaceme_core.report.figures import duration
from replaceme_core.report.forms import digits, share
from replaceme_core.report.parts import Cell, Plot, Section, Table
from replaceme_core.report.plots.trials import Trial, draw_trials
from replaceme_core.report.reading import Report, Step

MOST_TRIALS = 200
_PLACES: Sequence[tuple[Step, ...]] = (("gate", "trials"), ("trials",))


def trials(report: Report) -> Section | None:
    """Nothing where one depth was asked for."""
    place = next((one for one in _PLACES if report.rows(*one)), _PLACES[0])
    known = [row for row in report.rows(*place, most=MOST_TRIALS) if report.number(*place, row, "blocks") is not None]
    if not known:
        return None
    known.sort(key=lambda row: report.number(*place, row, "blocks") or 0)
    found = [_trial(report, *place, row) for row in known]
    rows = [_row(report, (*place, row), one, found) for row, one in zip(known, found, strict=True)]
    table = Table(
        caption="The trials, the one that removes least first",
        header=("Blocks removed", "Perplexity, times the original's (ratio)", "Accuracy kept", "Gate", "Time"),
        rows=rows,
        wordy=frozenset({3}),
        marked=frozenset(place for place, one in enumerate(found) if one.is_chosen),
        note="A star: no other trial removes more at as low a perplexity and as much accuracy.",
    )
    limits = (
        report.number("spec", "gate", "perplexity_ratio", "max"),
        report.number("spec", "gate", "accuracy_kept", "min"),
    )
    parts: list[Table | Plot] = [table]
    if any(one.perplexity is not None or one.accuracy is not None for one in found):
        parts.append(
            Plot(
                name="trials",
                title="What each depth costs",
                alt=f"A mark for each of {len(found)} trials by the number of blocks removed; the values are in the "
                "tables of the report.",
                reading="Further right is smaller; in the plot of perplexity lower is better, in that of accuracy "
                "higher. Dashed lines: the limits of the gate; crosses miss it; the diamond was taken.",
                draw=partial(draw_trials, found, limits=limits),
            )
        )
    return Section(id="trials", title="Search for the deepest cut", parts=parts)


def _trial(report: Report, *base: Step) -> Trial:
    blocks, has_passed = report.number(*base, "blocks") or 0, report.is_true(*base, "passed")
    return Trial(
        blocks=int(blocks),
        perplexity=report.number(*base, "measured", "perplexity_ratio"),
        accuracy=report.number(*base, "measured", "accuracy_kept"),
        has_passed=has_passed,
        is_chosen=has_passed and blocks == len(report.blocks("removed_blocks")),
    )


def _row(report: Report, base: tuple[Step, ...], one: Trial, all_of_them: Sequence[Trial]) -> list[Cell]:
    star = " *" if not any(_dominates(other, one) for other in all_of_them) else ""
    problem: Cell = (": ", report.words(*base, "problem")) if report.text(*base, "problem") else ()
    return [
        (report.figure(*base, "blocks"), f"{star}{' (taken)' if one.is_chosen else ''}"),
        (report.figure(*base, "measured", "perplexity_ratio", as_=digits(3)),),
        (report.figure(*base, "measured", "accuracy_kept", as_=share),),
        ("passed" if one.has_passed else "✗ missed", *problem),
        (report.figure(*base, "seconds", as_=duration),),
    ]


def _dominates(one: Trial, other: Trial) -> bool:
    """Whether it is better in one of blocks, perplexity and accuracy, and as good in the others."""
    mine, its = (
        (each.blocks, -math.inf if each.perplexity is None else -each.perplexity, each.accuracy or 0.0)
        for each in (one, other)
    )
    return mine != its and all(a >= b for a, b in zip(mine, its, strict=True))
