"""The report as one HTML file: styles and pictures are in it, it needs no network, and it runs no script."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from replaceme_core.report.plots import Format, can_draw, rendered
from replaceme_core.report.reading import Report
from replaceme_core.report.sections import Plot, sections_of
from replaceme_core.report.view import warnings
from replaceme_core.request.removal import block_ranges

PAGE: Final = "report.html"
_TEMPLATES = Path(__file__).parent / "templates"


def plots_of(content: Mapping[str, object]) -> list[Plot]:
    """The plots of a report, the content of `replaceme.json`. Nothing is drawn yet."""
    return [part for section in sections_of(Report(content)) for part in section.parts if isinstance(part, Plot)]


def render_page(content: Mapping[str, object]) -> str:
    """The page of a report, the content of `replaceme.json`; without matplotlib it has no pictures and says so."""
    report = Report(content)
    removed, kept = len(report.blocks("removed_blocks")), len(report.blocks("kept_blocks"))
    name = report.text("spec", "model", "repo_id").split("/")[-1] or "a model"
    return (
        _environment()
        .get_template("report.html")
        .render(
            title=f"{name}, {kept} of {removed + kept} blocks",
            model=name,
            blocks=f"{kept} of {removed + kept} blocks",
            removed=block_ranges(report.blocks("removed_blocks")),
            warnings=warnings(report),
            sections=sections_of(report),
            draws=can_draw(),
            data_of=data_of,
            style=Markup(_style()),  # ours, and the policy has its digest
            policy=policy(),
        )
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


def data_of(plot: Plot) -> str:
    """The picture as an address that has the whole of it."""
    return "data:image/svg+xml;base64," + base64.b64encode(rendered(plot.draw, "svg")).decode()


def write_page(directory: Path, content: Mapping[str, object]) -> Path:
    """Write `report.html` into `directory`."""
    path = directory / PAGE
    path.write_text(render_page(content), encoding="utf-8")
    return path


def write_plots(directory: Path, content: Mapping[str, object], *, kinds: Sequence[Format]) -> list[Path]:
    """Write each plot in each of `kinds` into `directory`, and return the paths. Needs matplotlib."""
    written = []
    for plot in plots_of(content):
        for kind in kinds:
            path = directory / f"{plot.name}.{kind}"
            path.write_bytes(rendered(plot.draw, kind))
            written.append(path)
    return written


@cache
def _style() -> str:
    return (_TEMPLATES / "report.css").read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
