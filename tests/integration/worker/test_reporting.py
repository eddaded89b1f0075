"""What a worker reports of itself and of the runner: the list of workers, the log of a job, its times."""

from contextlib import suppress

import psutil

from benchmarks.harness.jobs import owner_of
from benchmarks.harness.processes import wait_until
from benchmarks.harness.site import Site
from replaceme_core.hardware import WorkerKind
from replaceme_core.ledger import reading
from replaceme_core.ledger.reading import Timeline
from replaceme_core.ledger.records import Worker, WorkerMemory
from replaceme_core.ledger.states import EventType, JobStatus
from replaceme_core.ledger.watching import Workers, read_figures


def workers(site: Site) -> tuple[Worker, ...]:
    with site.database.session(read_only=True) as session:
        return Workers(session).list()


def memory_of(site: Site, worker: Worker) -> WorkerMemory:
    with site.database.session(read_only=True) as session:
        return read_figures(session).memory[worker.name]


def timeline(site: Site, job_id: str) -> Timeline:
    with site.database.session(read_only=True) as session:
        return reading.timelines(session, [reading.get(session, job_id, owner=owner_of(session, job_id))])[job_id]


def counts_the_runner(site: Site, worker: Worker) -> bool:
    """Whether the worker has looked at its runner since that is as large as it is now."""
    with suppress(psutil.NoSuchProcess):
        sizes = [process.memory_info().rss for process in site.runners()]
        return bool(sizes) and (memory_of(site, worker).used_bytes or 0) > max(sizes)
    return False


def test_a_worker_is_listed_with_its_job_until_it_ends(site: Site) -> None:
    worker = site.start_worker(queues="replaceme,cpu")
    job_id = site.add(stub_seconds="6")
    wait_until(lambda: [each.jobs for each in workers(site)] == [((job_id, "tests"),)], seconds=30, what="its job")
    (listed,) = workers(site)
    assert listed.alive
    assert listed.kinds == (WorkerKind.CPU,)
    assert "CPU" in listed.device
    wait_until(lambda: counts_the_runner(site, listed), seconds=30, what="memory with the runner's")
    memory = memory_of(site, listed)
    assert memory.total_bytes is not None
    assert memory.used_bytes is not None
    assert memory.used_bytes < memory.total_bytes
    assert (memory.gpu_total_bytes, memory.gpu_used_bytes) == (None, None)
    assert listed.host == str(site.job(job_id).worker).rpartition(":")[0]
    assert site.wait_for_end(job_id).status is JobStatus.SUCCEEDED
    worker.process.terminate()
    worker.process.wait(timeout=60)
    assert workers(site) == ()


def test_the_log_and_the_times_of_a_job_are_kept(embedded_site: Site) -> None:
    embedded_site.start_worker()
    job_id = embedded_site.add()
    assert embedded_site.wait_for_end(job_id).status is JobStatus.SUCCEEDED
    with embedded_site.database.session(read_only=True) as session:
        lines = reading.log(session, job_id, limit=1000, owner=owner_of(session, job_id)).items
    assert "a library writes something on standard output" in [line.text for line in lines]
    found = timeline(embedded_site, job_id)
    (attempt,) = found.attempts
    assert (attempt.number, attempt.outcome) == (1, EventType.SUCCEEDED)
    times = [stage.started_at for stage in found.stages if stage.started_at is not None]
    assert times == sorted(times)
    assert len(times) >= 8
    assert {stage.fraction for stage in found.stages} == {1.0}
