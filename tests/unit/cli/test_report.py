"""`replaceme report`: the page and the plots, of a job and of a directory."""

import json
import sys
import webbrowser
from pathlib import Path

import pytest

from replaceme_core.report.page import render_page
from tests.fixtures.cli.stub_service import JOB_ID, StubService, run_at
from tests.fixtures.reports.small import PLOTS, SMALL


@pytest.fixture
def result(tmp_path: Path) -> Path:
    """The directory of a result."""
    directory = tmp_path / "result"
    directory.mkdir()
    (directory / "replaceme.json").write_text(json.dumps(SMALL))
    return directory


def test_the_page_of_a_directory_and_of_a_job(service: StubService, result: Path, tmp_path: Path) -> None:
    service.answers[f"GET /jobs/{JOB_ID}/report"] = [(200, SMALL)]
    page = tmp_path / "page.html"
    for job in (str(result), JOB_ID):
        done = run_at(service, "report", job, "--html", str(page))
        assert (done.exit_code, done.stdout) == (0, ""), done.output
        assert f"wrote {page}" in done.stderr
        assert page.read_text() == render_page(SMALL)
        page.unlink()
    done = run_at(service, "report", str(result), "--html", str(page), "--json")
    assert json.loads(done.stdout) == SMALL


def test_the_plots(service: StubService, result: Path, tmp_path: Path) -> None:
    done = run_at(service, "report", str(result), "--plots", str(tmp_path / "a" / "b"))
    assert done.exit_code == 0, done.output
    written = sorted(path.name for path in (tmp_path / "a" / "b").iterdir())
    assert written == sorted(f"{name}.{kind}" for name in PLOTS for kind in ("svg", "png"))


def test_it_opens_the_page(service: StubService, result: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: bool(opened.append(address)) or len(opened) == 1)
    page = tmp_path / "page.html"
    assert "no browser" not in run_at(service, "report", str(result), "--open", "--html", str(page)).stderr
    assert opened == [page.as_uri()]
    done = run_at(service, "report", str(result), "--open")
    assert "no browser was found" in done.stderr
    assert Path(opened[1].removeprefix("file://")).read_text() == render_page(SMALL)


def test_what_cannot_be_written_is_bad_input(service: StubService, result: Path, tmp_path: Path) -> None:
    for option in (("--html", str(tmp_path / "none" / "page.html")), ("--plots", str(result / "replaceme.json"))):
        done = run_at(service, "report", str(result), *option)
        assert done.exit_code == 2
        assert "cannot be written" in done.stderr


def test_plots_need_matplotlib(service: StubService, result: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = run_at(service, "report", str(result), "--plots", str(result / "plots"))
    assert done.exit_code == 2
    assert "pip install 'replaceme[plot]'" in done.stderr
    assert not (result / "plots").exists()
    done = run_at(service, "report", str(result), "--html", str(result / "page.html"))
    assert done.exit_code == 0
    assert "without pictures" in done.stderr
