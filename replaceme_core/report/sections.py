"""The sections of the page of a report: its tables, pictures, facts and answers, in their order."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

from replaceme_core.report import plots, view
from replaceme_core.report.figures import PERPLEXITY, RATIO, WHOLE, duration, size
from replaceme_core.report.reading import Piece, Report, Shown, Step, pointer
from replaceme_core.report.view import Cell, Column, Table
from replaceme_core.request.removal import block_ranges

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_BLOCKS, _MOST_WINDOWS, _MOST_PLOTTED = 1000, 16_000, 40
_MOST_STAGES, _MOST_SAMPLES = 20, 2000
_MOST_SPEC = 20_000  # characters
_GIGABYTE = 1e9


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Names with their values; screen readers read the `caption`."""

    caption: str
    rows: Sequence[tuple[str, Cell]]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One prompt with the answers of both models; `notes` on either, empty where there is nothing to note."""

    prompt: Cell
    before: Cell
    after: Cell
    notes: tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Code:
    """A text to copy; `place` is where the report has it."""

    caption: str
    text: str
    place: str


@dataclass(frozen=True, kw_only=True)
class Plot:
    """`name` is that of its file, `alt` what it shows for those who cannot see it, `reading` how it is read."""

    name: str
    title: str
    alt: str
    reading: str
    draw: Callable[[], "Figure"]


Part = Table | Facts | Code | Plot | Answer


@dataclass(frozen=True, kw_only=True)
class Section:
    """`note` is a sentence or two on what it is about."""

    id: str
    title: str
    note: str = ""
    parts: Sequence[Part] = field(default_factory=tuple)


def sections_of(report: Report) -> list[Section]:
    """The sections that the report has something for, in the order of the page."""
    quality = "Both models were measured in one run, with the same settings, on text that took no part in making it."
    gate = "The result passes its gate." if report.is_true("gate", "passed") else "The result misses its gate."
    basis = [*_influence(report), *_windows(report), view.candidates(report), *_candidates(report)]
    origin = [*_origin(report), *_checksums(report), *_spec(report)]
    found = (
        _section("summary", "In short", [_summary(report)]),
        _section("gate", "Gate", [view.gate(report)], note=gate),
        _section("trials", "Search for the deepest cut", [view.trials(report), *_trials(report)]),
        _section(
            "quality",
            "Quality before and after",
            [view.texts(report), *_ratios(report), view.tasks(report), *_accuracies(report)],
            note=quality,
        ),
        _section("size", "Size and speed", [view.both_models(report)]),
        _section(
            "answers",
            "Answers side by side",
            _answers(report),
            note="The same prompts to both models, without sampling.",
        ),
        _section("choice", "Which blocks, and why", [*basis, view.disagreements(report)]),
        _section("cost", "Time and memory", _cost(report)),
        _section("origin", "Where it comes from", origin),
    )
    return [one for one in found if one.parts]


def _section(id: str, title: str, parts: Sequence[Part | None], *, note: str = "") -> Section:
    return Section(id=id, title=title, note=note, parts=[part for part in parts if part is not None])


def _summary(report: Report) -> Facts:
    """The model, which blocks are gone, and the first figures."""
    removed, kept = (_count_of(report, name) for name in ("removed_blocks", "kept_blocks"))
    ranges = Shown(text=_removed(report), value=None, places=(pointer(["removed_blocks"]),))
    rows: list[tuple[str, Cell]] = [
        ("Model", (report.words("spec", "model", "repo_id"),)),
        ("Removed", (removed, " blocks: ", ranges, " (counted from zero)")),
        ("Kept", (kept, " blocks")),
        ("Method", _method(report)),
    ]
    if report.number("after", "perplexity") is not None:
        before, after = (report.figure(side, "perplexity", as_=PERPLEXITY) for side in ("before", "after"))
        ratio: Cell = ()
        if report.rows("texts"):
            ratio = (
                " (",
                report.figure("texts", 0, "ratio", as_=RATIO),
                " times) on ",
                report.words("texts", 0, "name"),
            )
        old, new = (report.figure(side, "bytes", as_=size) for side in ("before", "after"))
        change = report.change(("before", "bytes"), ("after", "bytes"))
        rows.append(("Perplexity", (after, ", original ", before, *ratio)))
        rows.append(("Weights on disk", (new, ", original ", old, " (", change, ")")))
    else:
        rows.append(("Quality", ("not measured: the evaluation was off",)))
    rows.append(("Made", (report.words("created_at"),)))
    return Facts(caption="The result in short", rows=rows)


def _count_of(report: Report, name: str) -> Piece:
    found = report.numbers(name)
    return Shown(text=f"{len(found)}", value=len(found), places=(pointer([name]),))


def _removed(report: Report) -> str:
    return block_ranges(report.blocks("removed_blocks")) or "none"


def _method(report: Report) -> Cell:
    asked, taken = report.text("method"), report.text("chosen_method")
    if not taken or asked == taken:
        return (report.words("method"),)
    return (report.words("chosen_method"), " (asked for: ", report.words("method"), ")")


def _trials(report: Report) -> list[Part]:
    found = view.trials_of(report)
    if all(one.perplexity is None and one.accuracy is None for one in found):
        return []
    limits = (
        report.number("spec", "gate", "perplexity_ratio", "max"),
        report.number("spec", "gate", "accuracy_kept", "min"),
    )
    return [
        Plot(
            name="trials",
            title="What each depth costs",
            alt=f"A mark for each of {len(found)} trials by the number of blocks removed; the values are in the "
            "tables of the report.",
            reading="Further right is smaller; in the plot of perplexity lower is better, in that of accuracy "
            "higher. Dashed lines: the limits of the gate; crosses miss it; the diamond was taken.",
            draw=partial(plots.draw_trials, found, limits=limits),
        )
    ]


def _ratios(report: Report) -> list[Part]:
    found = [
        plots.Ratio(
            name=report.text("texts", row, "name"),
            value=value,
            interval=_bounds(report, "texts", row, low="ratio_low", high="ratio_high"),
        )
        for row in report.rows("texts", most=_MOST_PLOTTED)
        if (value := report.number("texts", row, "ratio")) is not None
    ]
    if not found:
        return []
    return [
        Plot(
            name="perplexity",
            title="Perplexity as a multiple of the original's",
            alt=f"A mark with an error bar for each of {len(found)} texts; values are in the tables of the report.",
            reading="The further right of the dashed line (as good as the original), the more is lost on that "
            "text. Bars are the 95 % confidence interval: two texts whose bars overlap are not surely different.",
            draw=partial(plots.draw_ratios, found),
        )
    ]


def _accuracies(report: Report) -> list[Part]:
    found = []
    for row in report.rows("tasks", most=_MOST_PLOTTED):
        before, after = (report.number("tasks", row, side, "accuracy") for side in ("before", "after"))
        if before is None or after is None:
            continue
        old, new = (_bounds(report, "tasks", row, side, low="low", high="high") for side in ("before", "after"))
        found.append(
            plots.Accuracy(
                name=report.text("tasks", row, "name"),
                before=before,
                after=after,
                intervals=(old, new),
                chance=report.number("tasks", row, "chance"),
            )
        )
    if not found:
        return []
    return [
        Plot(
            name="tasks",
            title="Accuracy in each task",
            alt=f"Two marks with error bars for each of {len(found)} tasks; values are in the tables of the report.",
            reading="Circle: the original; square: the result; a short upright line: guessing. Bars are 95 % "
            "confidence intervals: where those of both overlap, the difference may be chance.",
            draw=partial(plots.draw_accuracies, found),
        )
    ]


def _bounds(report: Report, *base: Step, low: str, high: str) -> plots.Interval:
    bounds = report.number(*base, low), report.number(*base, high)
    return None if bounds[0] is None or bounds[1] is None else (bounds[0], bounds[1])


def _answers(report: Report) -> list[Part]:
    def note(row: int, name: str) -> str:
        return "It ends in a repetition." if report.is_true("answers", row, name) else ""

    return [
        Answer(
            prompt=(report.words("answers", row, "prompt"),),
            before=(report.words("answers", row, "before"),),
            after=(report.words("answers", row, "after"),),
            notes=(note(row, "before_loops"), note(row, "after_loops")),
        )
        for row in report.rows("answers", most=view.MOST_ANSWERS)
    ]


def _influence(report: Report) -> list[Part]:
    angles = [report.number("layers", row, "distance") for row in report.rows("layers", most=_MOST_BLOCKS)]
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
            draw=partial(plots.draw_influence, known, removed=removed),
        )
    ]


def _windows(report: Report) -> list[Part]:
    found = report.at("windows", "distances")
    rows = [report.numbers("windows", "distances", row) for row in range(len(found) if isinstance(found, list) else 0)]
    if not rows or not all(rows) or len(rows) > _MOST_BLOCKS or sum(map(len, rows)) > _MOST_WINDOWS:
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
            draw=partial(plots.draw_windows, rows, cuts=removed),
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
    rows = report.rows("candidates", most=view.MOST_CANDIDATES)
    order = next((name for name in view.ORDERS if any(report.number("candidates", row, name) for row in rows)), "start")
    points = []
    for row in rows:
        base = ("candidates", row)
        place = report.number(*base, order)
        values = {name: value for name in plots.LOSSES if (value := report.number(*base, name)) is not None}
        if place is not None and values:
            points.append(
                plots.Point(
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
            draw=partial(plots.draw_candidates, points, axis=axis),
        )
    ]


def _cost(report: Report) -> list[Part]:
    """Stages with what was expected of them, and the calibration pass."""
    stages = report.rows("stages", most=_MOST_STAGES)
    if not stages:
        return []
    planned = {report.text("plan", "stages", row, "name"): row for row in report.rows("plan", "stages")}
    memory = "the accelerator's memory" if report.text("device", "type") not in ("", "cpu") else "resident memory"
    basis = {
        "model": " Expected times come from a stated model alone.",
        "measured": " Expected times are corrected by earlier jobs.",
    }.get(report.text("plan", "basis"), "")
    expected = [Column(key="expected", heading="Expected")] if planned else []
    table = Table(
        caption="Stages, and what was expected" if planned else "Stages",
        columns=[
            Column(key="name", heading="Stage"),
            Column(key="seconds", heading="Time"),
            *expected,
            Column(key="peak_bytes", heading="Peak memory"),
            *expected,
        ],
        rows=[_stage(report, row, planned) for row in stages],
        note=f"Peaks are of {memory} of the process that runs the model.{basis}",
    )
    peaks = (_taken(report, planned, name) for name in ("seconds", "peak_bytes"))
    return [table, *peaks, *_memory(report), *_run(report)]


def _stage(report: Report, row: int, planned: Mapping[str, int]) -> list[Cell]:
    cells: list[Cell] = [(report.words("stages", row, "name"),)]
    plan = planned.get(report.text("stages", row, "name"))
    for name, form in (("seconds", duration), ("peak_bytes", size)):
        cells.append((report.figure("stages", row, name, as_=form),))
        if planned:
            place = ("plan", "stages", -1 if plan is None else plan, f"expected_{name}")
            cells.append((report.figure(*place, as_=form),))
    return cells


def _taken(report: Report, planned: Mapping[str, int], name: str) -> Plot:
    scale = 1.0 if name == "seconds" else _GIGABYTE
    taken = []
    for row in report.rows("stages", most=_MOST_STAGES):
        stage = report.text("stages", row, "name")
        plan = planned.get(stage)
        expected = None if plan is None else report.number("plan", "stages", plan, f"expected_{name}")
        actual = report.number("stages", row, name) or 0.0
        taken.append(
            plots.Taken(stage=stage, actual=actual / scale, expected=None if expected is None else expected / scale)
        )
    beside = "; the hatched one below it is what the plan expected" if planned else ""
    if name == "seconds":
        return Plot(
            name="times",
            title="Time of each stage",
            alt=f"Bars for the time of {len(taken)} stages; the values are in the tables of the report.",
            reading=f"The solid bar of a stage is the time that it took{beside}.",
            draw=partial(plots.draw_taken, taken, unit="time (s)"),
        )
    return Plot(
        name="peaks",
        title="Peak memory of each stage",
        alt=f"Bars for the peak memory of {len(taken)} stages; the values are in the tables of the report.",
        reading=f"The solid bar of a stage is the most memory that it had at once{beside}.",
        draw=partial(plots.draw_taken, taken, unit="peak memory (GB)"),
    )


def _memory(report: Report) -> list[Part]:
    samples = []
    for row in report.rows("memory", most=_MOST_SAMPLES):
        seconds, amount = (report.number("memory", row, name) for name in ("seconds", "bytes"))
        if seconds is not None and amount is not None:
            stage = report.text("memory", row, "stage")
            samples.append(plots.Sample(seconds=seconds, gigabytes=amount / _GIGABYTE, stage=stage))
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
            draw=partial(plots.draw_memory, samples, unit="memory (GB)"),
        )
    ]


def _run(report: Report) -> list[Part]:
    known = [
        ("Reading models, in all stages", ("loading_seconds",), duration),
        ("Memory before anything was loaded", ("imported_bytes",), size),
        ("Weights of the result", ("plan", "weight_bytes"), size),
        ("Weights of the result, expected", ("plan", "expected_weight_bytes"), size),
        ("Runs of one block on one batch", ("captured", "dense_block_runs"), WHOLE),
        ("One stream of all tokens", ("captured", "stream_bytes"), size),
        ("Sums in memory at once", ("captured", "statistics_bytes"), size),
        ("Streams and sums that were kept", ("captured", "kept_bytes"), size),
        ("Batches that were halved for memory", ("captured", "batch_halvings"), WHOLE),
    ]
    rows: list[tuple[str, Cell]] = [
        (label, (report.figure(*path, as_=form),)) for label, path, form in known if report.number(*path) is not None
    ]
    if report.at("captured", "cached") is not None:
        words = "read from the cache of an earlier job" if report.is_true("captured", "cached") else "computed"
        rows.append(("Activations", (words,)))
    return [Facts(caption="Of the run", rows=rows)] if rows else []


def _origin(report: Report) -> list[Part]:
    """Model, text, software and machine."""
    known: list[tuple[str, tuple[Step, ...]]] = [
        ("Hub", ("hub",)),
        ("Model", ("spec", "model", "repo_id")),
        ("Commit of the model", ("spec", "model", "revision")),
        ("Job", ("job_id",)),
        ("Version of ReplaceMe", ("code", "version")),
        ("Commit of ReplaceMe", ("code", "commit")),
        ("Digest of its sources", ("code", "digest")),
        ("Device", ("device", "type")),
        ("Hardware", ("device", "hardware")),
        ("Instructions", ("device", "instructions")),
        ("System", ("device", "system")),
        ("Key of the statistics", ("statistics_key",)),
    ]
    facts: list[tuple[str, Cell]] = [(label, (report.words(*path),)) for label, path in known if report.text(*path)]
    text = ("spec", "calibration")
    if report.number(*text, "samples") is not None:
        samples, length = (report.figure(*text, name, as_=WHOLE) for name in ("samples", "max_length"))
        amount = (samples, " sequences of ", length, " tokens, seed ", report.figure(*text, "seed"))
        facts.append(("Calibration", amount))
    texts: list[list[Cell]] = [
        [(report.words("calibration_texts", row, name),) for name in ("name", "revision")]
        for row in report.rows("calibration_texts")
    ]
    versions, numerics = (
        [[(key.replace("_", " "),), (report.words(name, key),)] for key in report.names(name) if report.text(name, key)]
        for name in ("versions", "numerics")
    )
    return [
        Facts(caption="What it was made from", rows=facts),
        *_words("Calibration texts", ("Text", "Commit"), texts),
        *_words("Versions", ("Software", "Version"), versions),
        *_words("What decides the rounding", ("Setting", "Value"), numerics),
    ]


def _checksums(report: Report) -> list[Part]:
    groups: list[tuple[str, tuple[Step, ...]]] = [
        ("original", ("model",)),
        *(("text", ("calibration_texts", row, "files")) for row in report.rows("calibration_texts")),
        ("tokens", ("tokens",)),
        ("result", ("result",)),
    ]
    rows: list[list[Cell]] = [
        [(key,), (kind,), (report.words(*path, key),)]
        for kind, path in groups
        for key in report.names(*path)
        if report.text(*path, key)
    ]
    return _words("Checksums (SHA-256)", ("File", "Of", "SHA-256"), rows)


def _words(caption: str, header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> list[Part]:
    columns = [Column(key=name, heading=name, is_words=True) for name in header]
    return [Table(caption=caption, columns=columns, rows=rows)] if rows else []


def _spec(report: Report) -> list[Part]:
    spec = json.dumps(report.at("spec"), indent=2, ensure_ascii=False)
    if report.at("spec") is None or len(spec) > _MOST_SPEC:
        return []
    return [Code(caption="Specification: sent again, it makes the same model", text=spec, place=pointer(["spec"]))]
