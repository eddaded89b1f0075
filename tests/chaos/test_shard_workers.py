"""Workers that stop in the middle of a shard, or cannot take any."""

import pytest

from benchmarks.harness.processes import wait_until
from benchmarks.harness.runners.gates import is_held, open_gates, set_gate
from benchmarks.harness.site import Site
from tests.fixtures.worker.shards import (
    SECONDS,
    SHARDS,
    add,
    assert_succeeded,
    begun,
    is_shard_helper,
    make_real,
    news,
    other_than_the_jobs_own,
    start_a_shard_helper,
)

pytestmark = [pytest.mark.chaos, pytest.mark.matrix]


def test_a_runner_that_is_stopped_releases_its_shard(embedded_site: Site) -> None:
    site = make_real(embedded_site)
    workers = [site.start_worker(), site.start_worker(name="w2")]
    job_id = add(site, enqueue=False)
    lost = start_a_shard_helper(site, job_id)
    (runner,) = (process for process in site.runners() if is_shard_helper(process))
    assert runner.ppid() in {child.pid for child in other_than_the_jobs_own(site, job_id, workers).children()}
    runner.terminate()
    assert_succeeded(site, job_id)
    assert [one["news"] for one in news(site, job_id)] == ["planned", "given back", "done"]
    assert news(site, job_id)[1]["number"] == lost
    assert begun(site, job_id)[-1] == ("shard", lost)


def test_a_worker_that_does_not_share_the_workspace_takes_no_shard(embedded_site: Site) -> None:
    site = make_real(embedded_site)
    workers = [site.start_worker()]
    elsewhere = site.data / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "broker").symlink_to(site.data / "broker")
    site.extra = {**site.extra, "REPLACEME_DATA": str(elsewhere)}
    workers.append(site.start_worker(name="w2"))
    job_id = add(site, enqueue=False)
    set_gate(site.data, job_id, "shard")
    site.enqueue(job_id)
    wait_until(lambda: is_held(site.data, job_id, "shard"), seconds=SECONDS, what="a shard at work")
    log = other_than_the_jobs_own(site, job_id, workers).log
    wait_until(lambda: log.read_text().count("no job can start") >= 2, seconds=30, what="two messages")
    open_gates(site.data)
    assert_succeeded(site, job_id)
    assert news(site, job_id)[-1] == {"news": "done", "count": SHARDS, "workers": {site.job(job_id).worker: SHARDS}}
