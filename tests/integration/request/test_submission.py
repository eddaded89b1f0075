"""Hostile repositories at a live API: each is refused in its own words, or left to the worker; nobody waits for it."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx2
import psutil
import pytest

from benchmarks.harness.processes import WAIT_SECONDS
from benchmarks.harness.site import Site
from tests.fixtures.api.requests import assert_problem
from tests.fixtures.hostile.case import Case
from tests.fixtures.hostile.repositories import ALL, build_hub, canaries
from tests.fixtures.service.serve import HEALTH_SECONDS, health_meanwhile

SECONDS, MEGABYTES = 5, 500
"""Of processor time of the API for one repository, and of its memory for all."""


def _peak_megabytes(pid: int) -> float:
    lines: Mapping[str, str] = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) / 1024


def _check(case: Case, plan: httpx2.Response, response: httpx2.Response, hub: Path) -> None:
    assert plan.status_code in (200, response.status_code), plan.text
    if plan.status_code == 200:
        refused = [one["code"] for one in plan.json()["refusals"]]
        assert refused == [case.code] or (refused == [] and response.status_code == 202)
    if not case.early and response.status_code == 202:
        return
    body = assert_problem(response, status=403 if case.code == "access_denied" else 422, code=case.code)
    assert case.says in str(body["detail"])
    assert str(hub) not in response.text


@pytest.fixture
def site(tmp_path: Path, sqlite_url: str) -> Iterator[Site]:
    site = Site(data=tmp_path / "data", database_url=sqlite_url, broker_url=None)
    yield site
    site.close()


def test_each_is_refused_or_left_to_the_worker_and_nobody_waits(site: Site, subtests: pytest.Subtests) -> None:
    """All of them, planned and submitted one after the other."""
    build_hub(site.hub_directory)
    started = site.start_api()
    assert started.url is not None
    process = psutil.Process(started.pid)
    with (
        httpx2.Client(base_url=started.url, timeout=WAIT_SECONDS) as client,
        health_meanwhile(started.url, process) as health,
    ):
        for name, one in ALL.items():
            before = process.cpu_times()
            plan = client.post("/plans", json=one.body())
            response = client.post("/jobs", json=one.body())
            after = process.cpu_times()
            with subtests.test(name):
                assert after.user + after.system - before.user - before.system < SECONDS
                _check(one.case, plan, response, site.hub_directory)
    took = sorted(health)
    assert len(took) > len(ALL)
    assert took[len(took) * 9 // 10] < HEALTH_SECONDS
    assert took[-1] < SECONDS
    assert _peak_megabytes(started.pid) < MEGABYTES
    assert canaries(site.hub_directory) == []
    assert "Traceback" not in started.log.read_text()
