"""The page of a report, opened as a file: on a phone, on a desk, in the dark, on paper, without a network."""

import json
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from replaceme_core.report.page import render_page
from tests.fixtures.browser.chromium import context_of, serious_findings, widths_that_overflow
from tests.fixtures.reports.real_run import finished_run

LOADED = "() => [...document.images].every((one) => one.complete && one.naturalWidth > 0)"
LONG = "x" * 300
HOSTILE = "<script>document.title = 'taken over'</script><img src=x onerror=\"document.title = 'taken over'\">"


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory.mktemp("run"))[1]


def opened(browser: Browser, path: Path, *, dark: bool = False) -> tuple[Page, list[str]]:
    """The page, and what it has asked for or complained of."""
    page, noted = context_of(browser, dark=dark).new_page(), []
    page.on("console", lambda message: noted.append(message.text))
    page.on("request", lambda request: noted.append(request.url[:60]))
    page.goto(path.as_uri())
    return page, [one for one in noted if one != path.as_uri()[:60] and not one.startswith("data:image/svg+xml")]


def check(page: Page, *, pictures: int) -> None:
    assert page.locator("img").count() == pictures
    page.wait_for_function(LOADED)
    assert serious_findings(page) == []
    assert widths_that_overflow(page) == []


def test_it_is_for_every_screen_and_for_paper(browser: Browser, result: Path) -> None:
    for dark in (False, True):
        page, noted = opened(browser, result / "report.html", dark=dark)
        check(page, pictures=8)
        assert noted == []
        page.emulate_media(media="print", color_scheme="light")
        page.set_viewport_size({"width": 680, "height": 1000})  # A4 within its margins
        assert page.locator("nav").is_hidden()
        assert not page.evaluate("() => document.documentElement.scrollWidth > document.documentElement.clientWidth")
        page.context.close()


def test_by_keyboard(browser: Browser, result: Path) -> None:
    page, _ = opened(browser, result / "report.html")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("() => document.activeElement.id") == "main"
    page.get_by_role("link", name="Time and memory").press("Enter")
    assert page.url.endswith("#cost")
    page.context.close()


def test_names_and_answers_of_strangers_break_nothing(browser: Browser, result: Path, tmp_path: Path) -> None:
    report = json.loads((result / "replaceme.json").read_text())
    report["spec"]["model"]["repo_id"] = f"org/{LONG}"
    report["texts"][0]["name"] = report["tasks"][0]["name"] = LONG
    report["answers"][0] |= {"prompt": HOSTILE, "before": HOSTILE, "after": LONG}
    report["versions"] = {LONG: HOSTILE}
    path = tmp_path / "page.html"
    path.write_text(render_page(report), encoding="utf-8")
    page, noted = opened(browser, path)
    check(page, pictures=8)
    assert noted == []
    assert "taken over" not in page.title()
    assert page.get_by_text(HOSTILE).count() >= 2
    page.context.close()
