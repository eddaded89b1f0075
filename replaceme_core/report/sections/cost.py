"""What the run took, beside its plan: time and memory."""

from collections.abc import Mapping
from functools import partial
from itertools import pairwise

from replaceme_core.report.figures import duration, size
from replaceme_core.report.forms import digits
from replaceme_core.report.parts import Cell, Facts, Part, Plot, Section, Table
from replaceme_core.report.plots.course import Sample, Taken, draw_memory, draw_taken
from replaceme_core.report.reading import Report

_GIGABYTE = 1e9
_MOST_STAGES = 20
_MOST_SAMPLES = 2000


def cost(report: Report) -> Section | None:
    """Stages with what was expected of them, and the calibration pass."""
    stages = report.rows("stages", most=_MOST_STAGES)
    if not stages:
        return None
    planned = {report.text("plan", "stages", row, "name"): row for row in report.rows("plan", "stages")}
    rows = [_row(report, row, planned) for row in stages]
    expected = ("Expected",) if planned else ()
    memory = "the accelerator's memory" if report.text("device", "type") not in ("", "cpu") else "resident memory"
    table = Table(
        caption="Stages, and what was expected" if planned else "Stages",
        header=("Stage", "Time", *expected, "Peak memory", *expected),
        rows=rows,
        note=f"Peaks are of {memory} of the process that runs the model. {_basis(report)}",
    )
    parts: list[Part] = [table, _plot(report, planned, "seconds"), _plot(report, planned, "peak_bytes")]
    return Section(id="cost", title="Time and memory", parts=[*parts, *_over_time(report), *_facts(report)])


def _row(report: Report, row: int, planned: Mapping[str, int]) -> list[Cell]:
    cells: list[Cell] = [(report.words("stages", row, "name"),)]
    plan = planned.get(report.text("stages", row, "name"))
    for name, form in (("seconds", duration), ("peak_bytes", size)):
        cells.append((report.figure("stages", row, name, as_=form),))
        if planned:
            place = ("plan", "stages", -1 if plan is None else plan, f"expected_{name}")
            cells.append((report.figure(*place, as_=form),))
    return cells


def _basis(report: Report) -> str:
    match report.text("plan", "basis"):
        case "model":
            return "Expected times come from a stated model alone."
        case "measured":
            return "Expected times are corrected by earlier jobs."
    return ""


def _plot(report: Report, planned: Mapping[str, int], name: str) -> Plot:
    scale = 1.0 if name == "seconds" else _GIGABYTE
    taken = []
    for row in report.rows("stages", most=_MOST_STAGES):
        stage = report.text("stages", row, "name")
        plan = planned.get(stage)
        expected = None if plan is None else report.number("plan", "stages", plan, f"expected_{name}")
        actual = report.number("stages", row, name) or 0.0
        taken.append(Taken(stage=stage, actual=actual / scale, expected=None if expected is None else expected / scale))
    beside = "; the hatched one below it is what the plan expected" if planned else ""
    if name == "seconds":
        return Plot(
            name="times",
            title="Time of each stage",
            alt=f"Bars for the time of {len(taken)} stages; the values are in the tables of the report.",
            reading=f"The solid bar of a stage is the time that it took{beside}.",
            draw=partial(draw_taken, taken, unit="time (s)"),
        )
    return Plot(
        name="peaks",
        title="Peak memory of each stage",
        alt=f"Bars for the peak memory of {len(taken)} stages; the values are in the tables of the report.",
        reading=f"The solid bar of a stage is the most memory that it had at once{beside}.",
        draw=partial(draw_taken, taken, unit="peak memory (GB)"),
    )


def _over_time(report: Report) -> list[Part]:
    samples = []
    for row in report.rows("memory", most=_MOST_SAMPLES):
        seconds, amount = (report.number("memory", row, name) for name in ("seconds", "bytes"))
        if seconds is not None and amount is not None:
            stage = report.text("memory", row, "stage")
            samples.append(Sample(seconds=seconds, gigabytes=amount / _GIGABYTE, stage=stage))
    if len(samples) < 2 or any(b.seconds < a.seconds for a, b in pairwise(samples)):
        return []
    return [
        Plot(
            name="memory",
            title="Memory over the run",
            alt=f"A line through {len(samples)} samples of memory over time, from stage to stage; the peaks are in the "
            "tables of the report.",
            reading="The line is the memory in use at a time; each dashed line is where the named stage begins. Peaks "
            "between two samples are in the plot of peaks only.",
            draw=partial(draw_memory, samples, unit="memory (GB)"),
        )
    ]


def _facts(report: Report) -> list[Part]:
    known = [
        ("Reading models, in all stages", "loading_seconds", (), duration),
        ("Memory before anything was loaded", "imported_bytes", (), size),
        ("Weights of the result", "plan", ("weight_bytes",), size),
        ("Weights of the result, expected", "plan", ("expected_weight_bytes",), size),
        ("Runs of one block on one batch", "captured", ("dense_block_runs",), digits(0)),
        ("One stream of all tokens", "captured", ("stream_bytes",), size),
        ("Sums in memory at once", "captured", ("statistics_bytes",), size),
        ("Streams and sums that were kept", "captured", ("kept_bytes",), size),
        ("Batches that were halved for memory", "captured", ("batch_halvings",), digits(0)),
    ]
    rows: list[tuple[str, Cell]] = [
        (label, (report.figure(first, *rest, as_=form),))
        for label, first, rest, form in known
        if report.number(first, *rest) is not None
    ]
    if report.at("captured", "cached") is not None:
        words = "read from the cache of an earlier job" if report.is_true("captured", "cached") else "computed"
        rows.append(("Activations", (words,)))
    return [Facts(caption="Of the run", rows=rows)] if rows else []
