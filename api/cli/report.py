"""`report`: what a job has found, for people, as JSON, as a page, and as pictures."""

import tempfile
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from api.cli.output.console import make_console, print_json, print_note
from api.cli.output.report import print_report
from api.cli.service import Service, asks_service
from replaceme_core.errors import InvalidInput
from replaceme_core.hub.files import read_json_file
from replaceme_core.hub.port import REPORT
from replaceme_core.report.page import PAGE, plots_of, render_page
from replaceme_core.report.plots import FORMATS, can_draw, rendered
from replaceme_core.report.reading import Report
from replaceme_core.wording import counted

_NO_PICTURES = "matplotlib is not installed: pip install 'replaceme[plot]'"


@asks_service()
def report(
    service: Service,
    job: Annotated[str, typer.Argument(metavar="ID|DIR", help="ID of a job, or the directory of a result.")],
    *,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the report here as one HTML page with its plots.")
    ] = None,
    plots: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write each plot here as SVG and PNG; DIR is made if needed.")
    ] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    if plots is not None and not can_draw():
        raise InvalidInput(f"the plots cannot be drawn; {_NO_PICTURES}")
    if not job:
        raise InvalidInput("an empty name is neither the id of a job nor a directory")
    file = Path(job) / REPORT
    if file.is_file():
        try:
            found = read_json_file(file, str(file))
        except OSError as error:
            raise InvalidInput(f"{file} cannot be read: {error.strerror}") from error
    elif Path(job).is_dir():
        raise InvalidInput(f"{job} has no {REPORT}, so it is no result")
    else:
        found = service.client.report(service.whole_id(job))
    try:
        _write(found, html=html, plots=plots, open_page=open_page)
    except OSError as error:
        raise InvalidInput(f"{error.filename or 'the report'} cannot be written: {error.strerror}") from error
    if service.as_json:
        print_json(found)
    elif html is None and plots is None and not open_page:
        print_report(make_console(stderr=False), Report(found))


def _write(found: dict[str, object], *, html: Path | None, plots: Path | None, open_page: bool) -> None:
    """What was asked for, with a line on standard error for each."""
    if plots is not None:
        plots.mkdir(parents=True, exist_ok=True)
        drawn = [(plot, kind) for plot in plots_of(found) for kind in FORMATS]
        for plot, kind in drawn:
            (plots / f"{plot.name}.{kind}").write_bytes(rendered(plot, kind))
        print_note(f"wrote {counted(len(drawn), 'pictures')} to {plots}")
    if open_page and html is None:  # the browser reads it after this process has ended, so it stays
        html = Path(tempfile.mkdtemp(prefix="replaceme-report-")) / PAGE
    if html is None:
        return
    html.write_text(render_page(found), encoding="utf-8")
    print_note(f"wrote {html}" + ("" if can_draw() else f", without pictures; {_NO_PICTURES}"))
    if open_page and not webbrowser.open(html.resolve().as_uri()):
        print_note(f"no browser was found; open {html} in one")
