"""The page of a report: over the API, in the dashboard, and how seldom it is drawn."""

import asyncio
import re
import threading
import time

import pytest
from anyio import create_task_group, to_thread, wait_all_tasks_blocked
from starlette.testclient import TestClient

from api.routes import deps
from api.routes.deps import ReportPages
from replaceme_core.errors import Unavailable
from replaceme_core.report.page import data_of, policy, render_page
from tests.fixtures.api.requests import assert_problem, submit
from tests.fixtures.jobs.ledger import Ledger
from tests.fixtures.reports.shown import PLOTS, SMALL

HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


@pytest.fixture
def finished(client: TestClient, ledger: Ledger) -> str:
    """The id of a job that has a report."""
    job_id = submit(client)
    ledger.succeed(job_id, report=SMALL)
    return job_id


@pytest.mark.usefixtures("brief_reports")
def test_who_wants_html_gets_a_page(client: TestClient, finished: str) -> None:
    page = client.get(f"/jobs/{finished}/report", headers=HTML)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["content-security-policy"] == policy(header=True)
    assert "frame-ancestors 'none'" in policy(header=True)
    assert "Accept" in page.headers["vary"]
    assert page.text == render_page(SMALL)
    for accept in ("*/*", "application/json", "application/json, text/html"):
        report = client.get(f"/jobs/{finished}/report", headers={"Accept": accept})
        assert report.json() == SMALL
        assert "Accept" in report.headers["vary"]
    queued = submit(client)
    assert_problem(client.get(f"/jobs/{queued}/report", headers=HTML), status=404, code="not_found")


@pytest.mark.usefixtures("brief_reports")
def test_the_dashboard_shows_its_plots_and_links_to_it(client: TestClient, finished: str) -> None:
    job = client.get(f"/ui/jobs/{finished}").text
    assert f'href="/ui/jobs/{finished}/report"' in job
    for name in PLOTS:
        assert f'<img src="/ui/jobs/{finished}/plots/{name}.svg" alt="' in job
    page = client.get(f"/ui/jobs/{finished}/report")
    assert page.headers["content-security-policy"] == policy(header=True)
    assert page.text == render_page(SMALL, back=f"../{finished}")
    assert client.get(f"/ui/jobs/{finished}/report.json").json() == SMALL


def test_a_plot_is_a_picture_with_a_policy_of_its_own(client: TestClient, finished: str) -> None:
    for kind, media_type, start in (("svg", "image/svg+xml", b"<?xml"), ("png", "image/png", b"\x89PNG")):
        picture = client.get(f"/ui/jobs/{finished}/plots/influence.{kind}")
        assert picture.headers["content-type"] == media_type
        assert picture.headers["content-security-policy"].startswith("default-src 'none'; style-src 'unsafe-inline'")
        assert picture.headers["x-content-type-options"] == "nosniff"
        assert picture.content.startswith(start)
    for wrong in ("candidates.svg", "influence.gif", "..%2finfluence.svg"):
        assert client.get(f"/ui/jobs/{finished}/plots/{wrong}").status_code in (404, 422)


def test_a_plot_is_drawn_once_for_both_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(deps, "rendered", lambda plot, _kind: drawn.append(plot.name) or plot.name.encode())

    async def read() -> list[bytes]:
        pages = ReportPages()
        for name in PLOTS:
            assert await pages.plot(SMALL, name, "svg") == name.encode()
        found = [await pages.page(SMALL), await pages.page(SMALL, back="../job")]
        pages.close()
        return found

    for page in asyncio.run(read()):
        assert [data_of(name.encode()) for name in PLOTS] == re.findall('<img src="([^"]+)"', page.decode())
    assert drawn == list(PLOTS)


def test_a_page_is_drawn_once_and_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[object] = []

    def render(report: dict[str, object], *, back: str, draw: object) -> str:
        drawn.append(report)
        return f"page {report}"

    monkeypatch.setattr(deps, "render_page", render)

    async def read() -> None:
        pages = ReportPages(most_kept=3)
        first, second = {"a": 1}, {"a": 2}
        assert len(set(await asyncio.gather(*(pages.page(first) for _ in range(5))))) == 1
        assert drawn == [first]
        assert await pages.page({"a": 1}) == b"page {'a': 1}", "known by its content"
        await pages.page(second)
        assert drawn == [first, second]
        for number in range(3, 6):
            await pages.page({"a": number})
        drawn.clear()
        await pages.page(first)
        assert drawn == [first], "older ones go"

    asyncio.run(read())


def test_all_are_drawn_in_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where others take threads meanwhile: the memory of each one that draws is never released."""
    threads: set[int] = set()

    def render(report: dict[str, object], *, back: str, draw: object) -> str:
        threads.add(threading.get_ident())
        return "page"

    monkeypatch.setattr(deps, "render_page", render)

    async def read() -> None:
        pages = ReportPages()
        for number in range(4):
            await asyncio.gather(pages.page({"a": number}), to_thread.run_sync(time.sleep, 0.05))

    asyncio.run(read())
    assert len(threads) == 1


def test_who_gives_up_loses_nothing_and_a_queue_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on, drawn = threading.Event(), []

    def render(report: dict[str, object], *, back: str, draw: object) -> str:
        assert goes_on.wait(30)
        drawn.append(report)
        return "page"

    monkeypatch.setattr(deps, "render_page", render)
    monkeypatch.setattr(deps, "MOST_WAITING", 1)

    async def read() -> None:
        pages = ReportPages()
        async with create_task_group() as requests:
            for number in (1, 2):
                requests.start_soon(pages.page, {"a": number})
            await wait_all_tasks_blocked()
            with pytest.raises(Unavailable, match="too many"):
                await pages.page({"a": 3})
            requests.cancel_scope.cancel()
        goes_on.set()
        assert await pages.page({"a": 1}) == b"page"
        assert drawn == [{"a": 1}], "what has begun is kept, and who waits and gives up has nothing drawn"

    asyncio.run(read())
