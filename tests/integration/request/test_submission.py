"""Hostile repositories at a live API: each is refused in its own words, or left to the worker; nobody waits for it."""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import psutil
import pytest

from benchmarks.harness.site import Site
from tests.fixtures.api.requests import assert_problem
from tests.fixtures.hostile.repositories import ALL, build_hub, canaries
from tests.fixtures.service.serve import HEALTH_SECONDS, health_meanwhile

SECONDS, MEGABYTES = 5, 500
"""Of processor time of the API for one repository, and of its memory for all."""
SLACK_SECONDS = 30
"""Of the clock, on a machine that does other things too."""


@dataclass(kw_only=True)
class Submitted:
    responses: dict[str, httpx2.Response] = field(default_factory=dict)
    plans: dict[str, httpx2.Response] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    health: list[float] = field(default_factory=list)
    megabytes: float = 0.0
    hub: Path
    log: str = ""


@pytest.fixture(scope="module")
def submitted(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Submitted]:
    """All of them, planned and submitted one after the other."""
    place = tmp_path_factory.mktemp("site")
    database = shutil.copy(sqlite_template, place / "ledger.sqlite3")
    site = Site(data=place / "data", database_url=f"sqlite:///{database}", broker_url=None)
    try:
        build_hub(site.hub_directory)
        started = site.start_api()
        assert started.url is not None
        found, process = Submitted(hub=site.hub_directory), psutil.Process(started.pid)
        with (
            httpx2.Client(base_url=started.url, timeout=SLACK_SECONDS) as client,
            health_meanwhile(started.url) as took,
        ):
            for name, one in ALL.items():
                before = process.cpu_times()
                found.plans[name] = client.post("/plans", json=one.body())
                found.responses[name] = client.post("/jobs", json=one.body())
                after = process.cpu_times()
                found.seconds[name] = after.user + after.system - before.user - before.system
        found.health = sorted(took)
        found.megabytes = _peak_megabytes(started.pid)
        found.log = started.log.read_text()
        yield found
    finally:
        site.close()


def _peak_megabytes(pid: int) -> float:
    lines: Mapping[str, str] = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) / 1024


@pytest.mark.parametrize("name", ALL)
def test_each_is_refused_or_left_to_the_worker(submitted: Submitted, name: str) -> None:
    case, response, plan = ALL[name].case, submitted.responses[name], submitted.plans[name]
    assert submitted.seconds[name] < SECONDS
    assert plan.status_code in (200, response.status_code), plan.text
    if plan.status_code == 200:
        refused = [one["code"] for one in plan.json()["refusals"]]
        assert refused == [case.code] or (refused == [] and response.status_code == 202)
    if not case.early and response.status_code == 202:
        return
    body = assert_problem(response, status=403 if case.code == "access_denied" else 422, code=case.code)
    assert case.says in str(body["detail"])
    assert str(submitted.hub) not in response.text


def test_nobody_waits_for_them(submitted: Submitted) -> None:
    assert len(submitted.health) > len(ALL)
    assert submitted.health[len(submitted.health) * 9 // 10] < HEALTH_SECONDS
    assert submitted.health[-1] < SLACK_SECONDS / 10
    assert submitted.megabytes < MEGABYTES


def test_no_code_ran_and_nothing_was_unexpected(submitted: Submitted) -> None:
    assert canaries(submitted.hub) == []
    assert "Traceback" not in submitted.log
