"""What a search for the deepest cut has tried: blocks against perplexity and accuracy."""

from functools import partial

from replaceme_core.report_page.forms import digits, share
from replaceme_core.report_page.parts import Cell, Plot, Section, Table
from replaceme_core.report_page.plots.trials import Trial, draw_trials
from replaceme_core.report_page.reading import Report

MOST_TRIALS = 200


def trials(report: Report) -> Section | None:
    """Nothing where one depth was asked for."""
    rows: list[list[Cell]] = []
    found: list[Trial] = []
    for row in report.rows("trials", most=MOST_TRIALS):
        base = ("trials", row)
        blocks = report.number(*base, "blocks")
        if blocks is None:
            continue
        has_passed, is_chosen = report.is_true(*base, "passed"), report.is_true(*base, "chosen")
        rows.append(
            [
                (report.figure(*base, "blocks"), " (taken)" if is_chosen else ""),
                (report.figure(*base, "perplexity_ratio", as_=digits(3)),),
                (report.figure(*base, "accuracy_kept", as_=share),),
                ("passed" if has_passed else "✗ missed",),
            ]
        )
        found.append(
            Trial(
                blocks=int(blocks),
                perplexity=report.number(*base, "perplexity_ratio"),
                accuracy=report.number(*base, "accuracy_kept"),
                has_passed=has_passed,
                is_chosen=is_chosen,
            )
        )
    if not found:
        return None
    table = Table(
        caption="The trials, in the order in which they were made",
        header=("Blocks removed", "Perplexity, times the original's (ratio)", "Accuracy kept", "Gate"),
        rows=rows,
        wordy=frozenset({3}),
        marked=frozenset(place for place, one in enumerate(found) if one.is_chosen),
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
                "table above.",
                reading="Further right is smaller; in the upper plot lower is better, in the lower one higher. A depth "
                "is worth taking where no other is both smaller and better. Dashed lines: the limits of the gate; "
                "crosses miss it; the diamond was taken.",
                draw=partial(draw_trials, found, limits=limits),
            )
        )
    return Section(id="trials", title="Search for the deepest cut", parts=parts)
