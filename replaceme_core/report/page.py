"""The report as one HTML file: styles and pictures are in it, it needs no network, and it runs no script.

Its sections have the tables of the view, plots, facts and answers, in their order.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from replaceme_core.report import plots, view
from replaceme_core.report.figures import NONE, WHOLE
from replaceme_core.report.plots import Plot, can_draw, rendered
from replaceme_core.report.reading import Piece, Place, Report, Shown, Step, pointer
from replaceme_core.report.view import Cell, Column, Table
from replaceme_core.wording import counted

PAGE: Final = "report.html"
_TEMPLATES = Path(__file__).parent / "templates"
_MOST_SPEC = 20_000  # characters


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Names with their values; screen readers read the `caption`."""

    caption: str
    rows: Sequence[tuple[str, Cell]]


@dataclass(frozen=True, kw_only=True)
class Code:
    """A text to copy; `place` is where the report has it."""

    caption: str
    text: str
    place: str


Part = Table | Facts | Code | Plot


@dataclass(frozen=True, kw_only=True)
class Section:
    """`note` is a sentence or two on what it is about."""

    id: str
    title: str
    note: str
    parts: Sequence[Part]


def sections_of(report: Report) -> list[Section]:
    """The sections that the report has something for, in the order of the page."""
    what = "images" if report.places("images") else "text"
    quality = f"Both models were measured in one run, with the same settings, on {what} that took no part in making it."
    answers = "The same prompts to both models, without sampling."
    gate = "The result passes its gate." if report.is_true("gate", "passed") else "The result misses its gate."

    def parts(*makers: Callable[[Report], Part | None]) -> list[Part | None]:
        return [make(report) for make in makers]

    measured = parts(view.texts, view.images, view.experts, plots.perplexities, view.tasks, plots.accuracies)
    basis = parts(plots.influence, plots.windows, view.candidates, plots.candidates, view.disagreements)
    cost = (view.stages(report), plots.stages(report, "seconds"), plots.stages(report, "peak_bytes"))
    found = (
        _section("summary", "In short", _summary(report)),
        _section("gate", "Gate", view.gate(report), note=gate),
        _section("trials", "Search for the deepest cut", view.trials(report), plots.trials(report)),
        _section("quality", "Quality before and after", *measured, note=quality),
        _section("healing", "Training", view.healing(report), plots.healing(report), note=_TRAINED),
        _section("size", "Size and speed", view.both_models(report)),
        _section("answers", "Answers side by side", view.answers(report), note=answers),
        _section("choice", "Which blocks, and why", *basis),
        _section("cost", "Time and memory", *cost),
        _section("origin", "Where it comes from", *_origin(report), _checksums(report), _spec(report)),
    )
    return [one for one in found if one.parts]


_TRAINED = "Training of what stays toward the original's distribution of the next token, after the blocks were removed."


def _section(id: str, title: str, *parts: Part | None, note: str = "") -> Section:
    return Section(id=id, title=title, note=note, parts=[part for part in parts if part is not None])


def _summary(report: Report) -> Facts:
    """The model, which blocks are gone, and the first figures."""
    removed, kept = (_blocks(report, name) for name in ("removed_blocks", "kept_blocks"))
    ranges = Shown(text=plots.removed_blocks(report), value=None, places=(pointer(["removed_blocks"]),))
    rows: list[tuple[str, Cell]] = [
        ("Model", (report.words("spec", "model", "repo_id"),)),
        ("Removed", (*removed, ": ", ranges, " (counted from zero)")),
        ("Kept", kept),
        ("Method", _method(report)),
    ]
    rows += [(one.label, (*one.value, " (", *one.note, ")")) for one in view.headlines(report)]
    if report.number("after", "bytes") is None:
        rows.append(("Quality", ("not measured: the evaluation was off",)))
    rows.append(("Made", (report.words("created_at"),)))
    return Facts(caption="The result in short", rows=rows)


def _blocks(report: Report, name: str) -> Cell:
    count = len(report.numbers(name))
    number, noun = counted(count, "blocks").split()
    return (Shown(text=number, value=count, places=(pointer([name]),)), f" {noun}")


def _method(report: Report) -> Cell:
    asked, taken = report.text("method"), report.text("chosen_method")
    if not taken or asked == taken:
        return (report.words("method"),)
    return (report.words("chosen_method"), " (asked for: ", report.words("method"), ")")


def _origin(report: Report) -> list[Table | Facts | None]:
    """Model, text, software and machine."""
    known: tuple[tuple[str, Place], ...] = (
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
    )
    facts: list[tuple[str, Cell]] = [(label, (report.words(*path),)) for label, path in known if report.text(*path)]
    text = ("spec", "calibration")
    if report.number(*text, "samples") is not None:
        samples, length = (report.figure(*text, name, as_=WHOLE) for name in ("samples", "max_length"))
        parts = (" images of ", length, " positions") if report.of_images else (" sequences of ", length, " tokens")
        amount = (samples, *parts, ", seed ", report.figure(*text, "seed"))
        facts.append(("Calibration", amount))
    texts = [
        (report.words(*base, "name"), report.words(*base, "revision")) for base in report.places("calibration_texts")
    ]
    versions, numerics = (
        [(key.replace("_", " "), value) for key, value in _entries(report, name)] for name in ("versions", "numerics")
    )
    return [
        Facts(caption="What it was made from", rows=facts),
        _words("Calibration", ("Source", "Commit"), texts),
        _words("Versions", ("Software", "Version"), versions),
        _words("What decides the rounding", ("Setting", "Value"), numerics),
    ]


def _checksums(report: Report) -> Table | None:
    groups: list[tuple[str, Place]] = [
        ("original", ("model",)),
        *(("text", (*base, "files")) for base in report.places("calibration_texts")),
        ("tokens", ("tokens",)),
        ("result", ("result",)),
    ]
    rows = [(key, kind, value) for kind, path in groups for key, value in _entries(report, *path)]
    return _words("Checksums (SHA-256)", ("File", "Of", "SHA-256"), rows)


def _entries(report: Report, *path: Step) -> list[tuple[str, Piece]]:
    """The names in an object with their texts."""
    return [(key, value) for key in report.names(*path) if (value := report.words(*path, key)) != NONE]


def _words(caption: str, header: Sequence[str], rows: Sequence[Sequence[Piece]]) -> Table | None:
    """A table of words alone."""
    columns = [Column(name, name, is_words=True) for name in header]
    return Table(caption=caption, columns=columns, rows=[[(piece,) for piece in row] for row in rows]) if rows else None


def _spec(report: Report) -> Code | None:
    spec = json.dumps(report.at("spec"), indent=2, ensure_ascii=False)
    if report.at("spec") is None or len(spec) > _MOST_SPEC:
        return None
    return Code(caption="Specification: sent again, it makes the same model", text=spec, place=pointer(["spec"]))


def plots_of(content: Mapping[str, object]) -> list[Plot]:
    """The plots of a report, the content of `replaceme.json`. Nothing is drawn yet."""
    return [part for section in sections_of(Report(content)) for part in section.parts if isinstance(part, Plot)]


def drawn(plot: Plot) -> bytes:
    """The picture in a page."""
    return rendered(plot, "svg")


def render_page(content: Mapping[str, object], *, back: str = "", draw: Callable[[Plot], bytes] = drawn) -> str:
    """The page of a report, the content of `replaceme.json`; without matplotlib it has no pictures and says so.

    `back` is an address to go back to; `draw` gives the picture of a plot as SVG.
    """
    report = Report(content)
    removed, kept = len(report.blocks("removed_blocks")), len(report.blocks("kept_blocks"))
    name = report.text("spec", "model", "repo_id").split("/")[-1] or "a model"
    return _template().render(
        model=name,
        blocks=f"{kept} of {removed + kept} blocks",
        warnings=view.warnings(report),
        back=back,
        is_rejected=report.at("gate", "passed") is False,
        sections=sections_of(report),
        draws=can_draw(),
        data_of=lambda plot: data_of(draw(plot)),
        style=Markup(_style()),  # ours, and the policy has its digest
        policy=policy(),
    )


def policy(*, header: bool = False) -> str:
    """The Content-Security-Policy of a page: nothing but its own style and pictures. Frames need a `header`."""
    parts = [
        "default-src 'none'",
        f"style-src 'sha256-{base64.b64encode(hashlib.sha256(_style().encode()).digest()).decode()}'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    return "; ".join([*parts, "frame-ancestors 'none'"] if header else parts)


def data_of(picture: bytes) -> str:
    """An SVG as an address that has the whole of it."""
    return "data:image/svg+xml;base64," + base64.b64encode(picture).decode()


@cache
def _style() -> str:
    return (_TEMPLATES / "report.css").read_text(encoding="utf-8")


def templates_in(folder: Path, *, finalize: Callable[[object], object] | None = None) -> Environment:
    """Templates that escape text, and in which an unknown name is an error. `finalize` makes what they print."""
    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        finalize=finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def _template() -> Template:
    return templates_in(_TEMPLATES).get_template("report.html")
