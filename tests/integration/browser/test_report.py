"""The page of a report, opened as a file: on a phone, on a desk, in the dark, on paper, without a network."""

import json
from pathlib import Path

from playwright.sync_api import Browser

from replaceme_core.report.page import render_page
from tests.fixtures.browser.chromium import context_of, serious_findings, widths_that_overflow
from tests.fixtures.reports.real_run import finished_run

LOADED = "() => [...document.images].every((one) => one.complete && one.naturalWidth > 0)"
LONG = "x" * 300
HOSTILE = "<script>document.title = 'taken over'</script><img src=x onerror=\"document.title = 'taken over'\">"


def test_it_is_for_every_screen_and_for_paper_whatever_strangers_wrote(browser: Browser, tmp_path: Path) -> None:
    report = json.loads((finished_run(tmp_path / "run")[2] / "replaceme.json").read_text())
    report["spec"]["model"]["repo_id"] = f"org/{LONG}"
    report["texts"][0]["name"] = report["tasks"][0]["name"] = LONG
    report["answers"][0] |= {"prompt": HOSTILE, "before": HOSTILE, "after": LONG}
    report["versions"] = {LONG: HOSTILE}
    path = tmp_path / "page.html"
    path.write_text(render_page(report), encoding="utf-8")
    for dark in (False, True):
        page, noted = context_of(browser, dark=dark).new_page(), list[str]()
        page.on("console", lambda message, noted=noted: noted.append(message.text))
        page.on("request", lambda request, noted=noted: noted.append(request.url[:60]))
        page.goto(path.as_uri())
        assert [one for one in noted if one != path.as_uri()[:60] and not one.startswith("data:image/svg+xml")] == []
        assert page.locator("img").count() == 8
        page.wait_for_function(LOADED)
        assert "taken over" not in page.title()
        assert page.get_by_text(HOSTILE).count() >= 2
        assert serious_findings(page) == []
        assert widths_that_overflow(page) == []
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        assert page.evaluate("() => document.activeElement.id") == "main"
        page.get_by_role("link", name="Time and memory").press("Enter")
        assert page.url.endswith("#cost")
        page.emulate_media(media="print", color_scheme="light")
        page.set_viewport_size({"width": 680, "height": 1000})  # A4 within its margins
        assert page.locator("nav").is_hidden()
        assert not page.evaluate("() => document.documentElement.scrollWidth > document.documentElement.clientWidth")
        page.context.close()
