"""Workers, runners and brokers that end in the middle of a job. Nothing is lost, done twice, or left behind.

Mostly on the embedded default, with one worker; the matrix of faults on servers is in the other modules.
"""

import signal

import psutil
import pytest
from sqlalchemy import update

from benchmarks.harness.processes import Started, wait_until
from benchmarks.harness.site import Site
from replaceme_core.ledger.states import JobStatus
from replaceme_core.ledger.tables import JobRow

pytestmark = pytest.mark.chaos


def pool_process(worker: Started) -> psutil.Process:
    """The process of a prefork pool that supervises the running job: parent of the runner."""
    [supervisor] = [child for child in psutil.Process(worker.pid).children() if child.children()]
    return supervisor


def assert_retried(site: Site, job_id: str) -> None:
    job = site.wait_for_end(job_id)
    assert job.status is JobStatus.SUCCEEDED, job.error
    assert job.attempt == 2
    assert site.event_types(job_id).count("lease_lapsed") == 1
    assert len(site.publications()) == 1
    wait_until(lambda: not site.runners(), what="the end of all runners")
    site.wait_for_empty_workspace()


def test_a_worker_whose_whole_tree_is_killed(embedded_site: Site) -> None:
    site = embedded_site
    site.extra = {"REPLACEME_LEASE_SECONDS": "5"}
    worker = site.start_worker()
    job_id = site.add(stub_seconds="2")
    site.wait_for_runner(job_id)
    worker.kill_tree()
    assert site.job(job_id).status is JobStatus.RUNNING
    site.start_worker(name="w2")
    assert_retried(site, job_id)


def test_a_runner_that_is_ended_alone(embedded_site: Site) -> None:
    """Killed, it is retried once, whether the kernel's counts show that memory had not run out or show nothing.

    SIGTERM is what a host that shuts down sends to all processes at the same time.
    """
    site = embedded_site
    site.start_worker()
    for number in (signal.SIGKILL, signal.SIGTERM):
        job_id = site.add(stub_seconds="3", stub_child="yes")
        site.wait_for_runner(job_id).send_signal(number)
        job = site.wait_for_end(job_id)
        assert (job.status, job.attempt) == (JobStatus.SUCCEEDED, 2)
        assert site.event_types(job_id).count("released") == 1
        assert site.runners() == []
        site.wait_for_empty_workspace()


@pytest.mark.matrix
def test_a_lease_that_another_worker_holds_stops_the_runner(site: Site) -> None:
    site.start_worker()
    job_id = site.add(stub_seconds="600")
    runner = site.wait_for_runner(job_id)
    with site.database.session() as session:
        session.execute(update(JobRow).where(JobRow.id == job_id).values(lease_token="someone-else"))
    wait_until(lambda: not runner.is_running(), what="the end of the runner")
    site.wait_for_empty_workspace()
    job = site.job(job_id)
    assert (job.status, job.attempt, job.error) == (JobStatus.RUNNING, 1, None)
    assert site.publications() == []


def test_attempts_are_used_up(embedded_site: Site) -> None:
    site = embedded_site
    site.extra = {"REPLACEME_MAX_ATTEMPTS": "1", "REPLACEME_LEASE_SECONDS": "5"}
    worker = site.start_worker()
    job_id = site.add(stub_seconds="600")
    site.wait_for_runner(job_id)
    pool_process(worker).kill()
    job = site.wait_for_end(job_id)
    assert job.error is not None
    assert job.error.code == "worker_lost"
