"""A worker that is shut down while it works, and another one that goes on."""

import signal
import time

import pytest

from benchmarks.harness.jobs import owner_of
from benchmarks.harness.processes import wait_until
from benchmarks.harness.site import Site
from replaceme_core.ledger import attempts, reading
from replaceme_core.ledger.states import JobStatus
from tests.fixtures.jobs.ledger import claim_job


def claims(site: Site, job_id: str) -> list[str]:
    with site.database.session(read_only=True) as session:
        events = reading.events(session, job_id, limit=100, owner=owner_of(session, job_id)).items
    return [str(event.data["worker"]) for event in events if event.type == "claimed"]


def test_another_worker_goes_on_at_once(site: Site) -> None:
    site.extra = {"REPLACEME_DRAIN_SECONDS": "1", "REPLACEME_MAX_ATTEMPTS": "1", "REPLACEME_SWEEP_SECONDS": "3600"}
    workers = [site.start_worker(name=name) for name in ("w1", "w2")]
    job_id = site.add(stub_seconds="8", stub_child="yes")
    runner = site.wait_for_runner(job_id)
    at_work = int(str(site.job(job_id).worker).rpartition(":")[2])
    workers.sort(key=lambda worker: at_work not in [child.pid for child in worker.children()])
    first, second = workers
    assert first.stop() == 0
    assert not runner.is_running()
    # no sweep runs: the worker that shut down has sent the message
    job = site.wait_for_end(job_id)
    assert job.status is JobStatus.SUCCEEDED, job.error
    assert job.attempt == 2, "although one attempt is all it has"
    assert site.event_types(job_id).count("released") == 1
    assert len(set(claims(site, job_id))) == 2
    assert len(site.publications()) == 1
    assert site.runners() == []
    wait_until(lambda: not site.workspaces(), seconds=5, what="an empty workspace")
    assert second.process.poll() is None


def test_a_job_that_ends_within_the_grace_is_finished(site: Site) -> None:
    site.extra = {"REPLACEME_DRAIN_SECONDS": "30"}
    worker = site.start_worker()
    job_id, next_id = site.add(stub_seconds="2"), None
    site.wait_for_runner(job_id)
    next_id = site.add()
    began = time.monotonic()
    assert worker.stop(seconds=30) == 0
    assert time.monotonic() - began < 15, "it does not wait when there is nothing left to do"
    job = site.job(job_id)
    assert (job.status, job.attempt) == (JobStatus.SUCCEEDED, 1)
    assert site.job(next_id).status is JobStatus.QUEUED, "no new job"
    site.start_worker(name="w2")
    assert site.wait_for_end(next_id).status is JobStatus.SUCCEEDED


@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_in_every_pool(embedded_site: Site, pool: str) -> None:
    site = embedded_site
    site.extra = {"REPLACEME_DRAIN_SECONDS": "0.5"}
    worker = site.start_worker(pool=pool)
    job_id = site.add(stub_seconds="60")
    site.wait_for_runner(job_id)
    assert worker.stop() == 0
    assert site.job(job_id).status is JobStatus.QUEUED
    assert site.event_types(job_id)[-1] == "released"
    assert site.runners() == []
    assert site.workspaces() == []


def test_sigquit_releases_the_job_without_grace(embedded_site: Site) -> None:
    site = embedded_site
    site.extra = {"REPLACEME_DRAIN_SECONDS": "60", "REPLACEME_MAX_ATTEMPTS": "1"}
    worker = site.start_worker()
    job_id = site.add(stub_seconds="60")
    site.wait_for_runner(job_id)
    began = time.monotonic()
    worker.process.send_signal(signal.SIGQUIT)
    worker.process.wait(timeout=20)
    assert time.monotonic() - began < 10
    job = site.job(job_id)
    assert job.status is JobStatus.QUEUED
    with site.database.session() as session:
        claim = claim_job(session, job_id, worker="tests", lease_seconds=60)
        assert (claim.attempt, claim.counted) == (2, 1)
        attempts.finish_cancelled(session, claim)


def test_a_cancel_during_the_grace_is_a_cancel(embedded_site: Site) -> None:
    site = embedded_site
    site.extra = {"REPLACEME_DRAIN_SECONDS": "30"}
    worker = site.start_worker()
    job_id = site.add(stub_seconds="60")
    site.wait_for_runner(job_id)
    worker.process.terminate()
    site.cancel(job_id)
    assert site.wait_for_end(job_id, seconds=5).status is JobStatus.CANCELLED
    assert worker.process.wait(timeout=10) == 0
