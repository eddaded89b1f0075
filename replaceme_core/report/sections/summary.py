"""What came out, in short, and what a person must know first."""

from collections.abc import Sequence

from replaceme_core.report.figures import exact, size
from replaceme_core.report.forms import count_of, digits, ranges_of
from replaceme_core.report.parts import Cell, Facts, Section, Table
from replaceme_core.report.reading import Report


def summary(report: Report) -> Section:
    """The model, what is gone, and the first figures."""
    rows: list[tuple[str, Cell]] = [
        ("Model", (report.words("spec", "model", "repo_id"),)),
        (
            "Removed",
            (
                count_of(report, "removed_blocks"),
                " blocks: ",
                ranges_of(report, "removed_blocks"),
                " (counted from zero)",
            ),
        ),
        ("Kept", (count_of(report, "kept_blocks"), " blocks")),
        ("Method", _method(report)),
    ]
    if report.number("after", "perplexity") is not None:
        rows += [
            (
                "Perplexity",
                (
                    report.figure("after", "perplexity", as_=digits(2)),
                    ", original ",
                    report.figure("before", "perplexity", as_=digits(2)),
                    *_ratio(report),
                ),
            ),
            (
                "Weights on disk",
                (
                    report.figure("after", "bytes", as_=size),
                    ", original ",
                    report.figure("before", "bytes", as_=size),
                    " (",
                    report.change(("before", "bytes"), ("after", "bytes")),
                    ")",
                ),
            ),
        ]
    else:
        rows.append(("Quality", ("not measured: the evaluation was off",)))
    rows.append(("Made", (report.words("created_at"),)))
    return Section(id="summary", title="In short", parts=[Facts(caption="The result in short", rows=rows)])


def warnings(report: Report) -> Sequence[Cell]:
    """One sentence each."""
    return [(report.words("warnings", row, "message"), ".") for row in report.rows("warnings")]


def gate(report: Report) -> Section | None:
    """What the result had to be worth."""
    base = ("gate", "criteria")
    rows = [
        [
            (report.words(*base, row, "name"),),
            (report.figure(*base, row, "value", as_=exact),),
            (report.figure(*base, row, "min", as_=exact),),
            (report.figure(*base, row, "max", as_=exact),),
            ("passed" if report.is_true(*base, row, "passed") else "✗ missed",),
        ]
        for row in report.rows(*base)
    ]
    if not rows:
        return None
    missed = frozenset(row for row in report.rows(*base) if not report.is_true(*base, row, "passed"))
    verdict = "The result passes its gate." if report.is_true("gate", "passed") else "The result misses its gate."
    table = Table(
        caption="Criteria of the gate",
        header=("Criterion", "Measured", "At least", "At most", "Verdict"),
        rows=rows,
        wordy=frozenset({4}),
        marked=missed,
        note="Divergence is in nats; all others are ratios to the original model.",
    )
    return Section(id="gate", title="Gate", note=verdict, parts=[table])


def _method(report: Report) -> Cell:
    asked, taken = report.text("method"), report.text("chosen_method")
    if not taken or asked == taken:
        return (report.words("method"),)
    return (report.words("chosen_method"), " (asked for: ", report.words("method"), ")")


def _ratio(report: Report) -> Cell:
    if not report.rows("texts"):
        return ()
    return (" (", report.figure("texts", 0, "ratio", as_=digits(2)), " times) on ", report.words("texts", 0, "name"))
