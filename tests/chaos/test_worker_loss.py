"""Workers, runners and brokers that end in the middle of a job. Nothing is lost, done twice, or left behind.

Mostly on the embedded default, with one worker; the matrix of faults on servers is in the other modules.
"""

import signal
from pathlib import Path

import psutil
import pytest
from sqlalchemy import update

from benchmarks.harness.processes import Started, wait_until
from benchmarks.harness.servers import free_port, start_valkey
from benchmarks.harness.site import Site
from replaceme_core.ledger.database import IDLE_SECONDS
from replaceme_core.ledger.states import JobStatus
from replaceme_core.ledger.tables import JobRow

pytestmark = pytest.mark.chaos


def pool_process(worker: Started) -> psutil.Process:
    """The process of a prefork pool that supervises the running job: parent of the runner."""
    [supervisor] = [child for child in psutil.Process(worker.pid).children() if child.children()]
    return supervisor


def assert_retried(site: Site, job_id: str) -> None:
    job = site.wait_for_end(job_id, seconds=40)
    assert job.status is JobStatus.SUCCEEDED, job.error
    assert job.attempt == 2
    assert site.event_types(job_id).count("lease_lapsed") == 1
    assert len(site.publications()) == 1
    wait_until(lambda: not site.runners(), seconds=5, what="the end of all runners")
    wait_until(lambda: not site.workspaces(), seconds=5, what="removal of abandoned workspaces")


def test_a_worker_whose_whole_tree_is_killed(embedded_site: Site) -> None:
    site = embedded_site
    site.extra = {"REPLACEME_LEASE_SECONDS": "3"}
    worker = site.start_worker()
    job_id = site.add(stub_seconds="2")
    site.wait_for_runner(job_id)
    worker.kill_tree()
    assert site.job(job_id).status is JobStatus.RUNNING
    site.start_worker(name="w2")
    assert_retried(site, job_id)


@pytest.mark.matrix
def test_a_supervisor_that_is_killed_alone(embedded_site: Site) -> None:
    site = embedded_site
    worker = site.start_worker()
    job_id = site.add(stub_seconds="4", stub_child="yes")
    runner = site.wait_for_runner(job_id)
    pool_process(worker).kill()
    wait_until(lambda: not runner.is_running(), seconds=5, what="the end of the runner")
    assert_retried(site, job_id)
    assert worker.process.poll() is None


def test_a_runner_that_is_killed_alone(embedded_site: Site) -> None:
    """The job is retried once, whether the kernel's counts show that memory had not run out or show nothing."""
    site = embedded_site
    site.start_worker()
    job_id = site.add(stub_seconds="2", stub_child="yes")
    site.wait_for_runner(job_id).kill()
    job = site.wait_for_end(job_id)
    assert job.status is JobStatus.SUCCEEDED
    assert job.attempt == 2
    assert site.event_types(job_id).count("released") == 1
    assert site.runners() == []
    assert site.workspaces() == []


def test_a_runner_that_is_stopped_from_outside_is_not_a_failed_job(embedded_site: Site) -> None:
    """A host that shuts down sends SIGTERM to all processes at the same time."""
    site = embedded_site
    site.start_worker()
    job_id = site.add(stub_seconds="3")
    site.wait_for_runner(job_id).terminate()
    job = site.wait_for_end(job_id)
    assert job.status is JobStatus.SUCCEEDED
    assert job.attempt == 2
    assert "released" in site.event_types(job_id)


@pytest.mark.matrix
def test_a_lease_that_another_worker_holds_stops_the_runner(site: Site) -> None:
    site.start_worker()
    job_id = site.add(stub_seconds="60")
    runner = site.wait_for_runner(job_id)
    with site.database.session() as session:
        session.execute(update(JobRow).where(JobRow.id == job_id).values(lease_token="someone-else"))
    wait_until(lambda: not runner.is_running(), seconds=5, what="the end of the runner")
    wait_until(lambda: not site.workspaces(), seconds=5, what="removal of the workspace")
    job = site.job(job_id)
    assert (job.status, job.attempt, job.error) == (JobStatus.RUNNING, 1, None)
    assert site.publications() == []


@pytest.mark.matrix
def test_a_supervisor_that_was_frozen_longer_than_its_lease_writes_nothing(site: Site) -> None:
    worker = site.start_worker()
    job_id = site.add(stub_seconds="5")
    site.wait_for_runner(job_id)
    frozen = pool_process(worker)
    frozen.send_signal(signal.SIGSTOP)
    try:
        site.start_worker(name="w2")
        # frozen within a transaction, it locks its row until the database ends the transaction
        job = site.wait_for_end(job_id, seconds=40 + IDLE_SECONDS)
        assert job.status is JobStatus.SUCCEEDED
        assert job.attempt == 2
        assert len(site.publications()) == 1
    finally:
        frozen.send_signal(signal.SIGCONT)
    wait_until(lambda: not site.runners(), seconds=10, what="the end of the first runner")
    wait_until(lambda: not site.workspaces(), seconds=10, what="removal of both workspaces")
    assert site.job(job_id) == job
    assert len(site.publications()) == 1


@pytest.mark.matrix
def test_a_worker_that_is_asked_to_stop_finishes_its_job(embedded_site: Site) -> None:
    site = embedded_site
    worker = site.start_worker()
    job_id = site.add(stub_seconds="2")
    site.wait_for_runner(job_id)
    assert worker.stop() == 0
    assert site.job(job_id).status is JobStatus.SUCCEEDED


def test_attempts_are_used_up(embedded_site: Site) -> None:
    site = embedded_site
    site.extra = {"REPLACEME_MAX_ATTEMPTS": "1", "REPLACEME_LEASE_SECONDS": "2"}
    worker = site.start_worker()
    job_id = site.add(stub_seconds="60")
    site.wait_for_runner(job_id)
    pool_process(worker).kill()
    job = site.wait_for_end(job_id)
    assert job.error is not None
    assert job.error.code == "worker_lost"


@pytest.mark.matrix
def test_a_broker_that_was_down_when_the_job_was_submitted(sqlite_url: str, tmp_path: Path) -> None:
    port = free_port()
    url = f"redis://127.0.0.1:{port}/0"
    site = Site(data=tmp_path / "data", database_url=sqlite_url, broker_url=url)
    try:
        with start_valkey(port=port):
            worker = site.start_worker()
        job_id = site.add(enqueue=False)
        wait_until(
            lambda: "no message could be sent" in worker.log.read_text(), seconds=30, what="a sweep that sends nothing"
        )
        assert site.job(job_id).status is JobStatus.QUEUED
        with start_valkey(port=port):
            assert site.wait_for_end(job_id, seconds=40).status is JobStatus.SUCCEEDED
            assert worker.stop() == 0
    finally:
        site.close()


@pytest.mark.parametrize(
    "pool",
    ["prefork", pytest.param("solo", marks=pytest.mark.matrix), pytest.param("threads", marks=pytest.mark.matrix)],
)
def test_a_message_that_was_never_sent(embedded_site: Site, pool: str) -> None:
    site = embedded_site
    job_id = site.add(enqueue=False)
    site.start_worker(pool=pool)
    assert site.wait_for_end(job_id).status is JobStatus.SUCCEEDED
