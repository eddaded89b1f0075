"""Workers that serve one kind of job, with real brokers; and `replaceme worker`."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from benchmarks.harness.jobs import report_of
from benchmarks.harness.processes import WAIT_SECONDS, Started, wait_until
from benchmarks.harness.runners.gates import is_held, open_gates, set_gate
from benchmarks.harness.site import Site
from replaceme_core.hardware import WorkerKind
from replaceme_core.ledger.states import JobStatus
from tests.fixtures.service.serve import REPLACEME, assert_gone, replaceme, torch_that_sees


def test_each_job_waits_for_its_kind_of_worker(server_site: Site) -> None:
    site = server_site
    site.start_worker(name="cpu", queues="cpu")
    gpu, cpu, any_worker = (site.add(worker_kind=worker_kind) for worker_kind in (WorkerKind.GPU, WorkerKind.CPU, None))
    for job_id in (cpu, any_worker):
        assert site.wait_for_end(job_id).status is JobStatus.SUCCEEDED
    assert site.job(gpu).status is JobStatus.QUEUED, "also after a sweep"
    without_message = site.add(worker_kind=WorkerKind.GPU, enqueue=False)
    site.start_worker(name="gpu", queues="gpu")
    for job_id in (gpu, without_message):
        job = site.wait_for_end(job_id)
        assert job.status is JobStatus.SUCCEEDED
        assert job.attempt == 1


def test_a_job_for_a_gpu_is_not_for_a_worker_that_sees_none(embedded_site: Site) -> None:
    site = embedded_site
    site.extra = {"REPLACEME_RUNNER_COMMAND": "null"}  # the runner that comes with it, on this machine
    with seen_by_torch(0, site):
        worker = site.start_worker()
        refused = site.launch_worker(name="gpu", queues="gpu")
        assert refused.process.wait(timeout=WAIT_SECONDS) != 0
        assert "torch sees no GPU on this machine" in refused.log.read_text()
    assert "jobs for workers with one are left to others" in worker.log.read_text()
    waiting, ended = site.add(worker_kind=WorkerKind.GPU), site.add(worker_kind=WorkerKind.CPU)
    site.wait_for_end(ended)  # whatever its outcome: it started first, although it was submitted later
    assert site.job(waiting).status is JobStatus.QUEUED


def visible_to_runner(site: Site, job_id: str) -> str:
    environment = report_of(site.database, job_id)["environment"]
    assert isinstance(environment, list)
    [value] = [entry.partition("=")[2] for entry in environment if entry.startswith("CUDA_VISIBLE_DEVICES=")]
    return str(value)


@contextmanager
def seen_by_torch(gpus: int, site: Site) -> Iterator[None]:
    """What the processes find that are started meanwhile."""
    before = dict(site.extra)
    site.extra |= torch_that_sees(gpus, site.data / "hardware")
    yield
    site.extra = before


def start(site: Site, *options: str) -> tuple[Started, str]:
    """`replaceme worker`, once it says that it is ready; with what it says."""
    log = site.data / f"command-{len(site.started)}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*REPLACEME, "worker", *options],
            env=site.environment(),
            cwd=site.data,
            stdout=subprocess.PIPE,
            stderr=output,
        )
    started = Started(process=process, log=log)
    site.started.append(started)
    assert process.stdout is not None
    line = process.stdout.readline().decode()
    process.stdout.close()
    assert line, log.read_text()
    return started, line.strip()


def worker_of(started: Started, visible: str) -> psutil.Process:
    """The main process of the Celery worker that sees `visible`."""
    for process in started.children():
        command = process.cmdline()
        if (
            "celery" in command
            and "api.cli.child_processes" not in command
            and process.environ()["CUDA_VISIBLE_DEVICES"] == visible
        ):
            return process
    raise AssertionError(f"nobody sees {visible}")


def test_a_worker_for_each_gpu_that_sees_its_own(server_site: Site) -> None:
    site = server_site
    with seen_by_torch(4, site):
        started, line = start(site, "--gpus", "1,3")
        assert line == "ready gpu1 gpu3"
        family = started.children()
        jobs = [site.add(worker_kind=WorkerKind.GPU, enqueue=False) for _ in range(2)]
        for job_id in jobs:
            set_gate(site.data, job_id, "calibrate")
            site.enqueue(job_id, worker_kind=WorkerKind.GPU)
        for job_id in jobs:  # at the same time
            wait_until(lambda job_id=job_id: is_held(site.data, job_id, "calibrate"), what="its runner")  # type: ignore[misc]
        open_gates(site.data)
        for job_id in jobs:
            assert site.wait_for_end(job_id).status is JobStatus.SUCCEEDED
        assert {visible_to_runner(site, job_id) for job_id in jobs} == {"1", "3"}
        waiting = site.add(worker_kind=WorkerKind.CPU)

        killed = worker_of(started, "3")
        killed.kill()
        wait_until(lambda: "restarting it in" in started.log.read_text(), what="a restart")

        def is_back() -> bool:
            try:
                return worker_of(started, "3") != killed
            except (AssertionError, psutil.NoSuchProcess):
                return False

        wait_until(is_back, what="another worker on GPU 3")
        family += started.children()
        assert site.job(waiting).status is JobStatus.QUEUED
        assert started.stop() == 0
        assert_gone(family)


def test_one_for_the_cpu_that_sees_no_gpu(embedded_site: Site) -> None:
    site = embedded_site
    site.extra = {"CUDA_VISIBLE_DEVICES": "0"}
    started, line = start(site)
    assert line == "ready cpu"
    job_id = site.add(worker_kind=WorkerKind.CPU)
    assert site.wait_for_end(job_id).status is JobStatus.SUCCEEDED
    assert visible_to_runner(site, job_id) == ""
    family = started.children()
    started.process.send_signal(signal.SIGINT)
    assert started.process.wait(timeout=WAIT_SECONDS) == 0
    assert_gone(family)


def test_what_cannot_work_is_said_at_once(tmp_path: Path) -> None:
    nowhere = {"REPLACEME_BROKER_URL": "redis://127.0.0.1:1/0"}
    done = replaceme("worker", "--data", "data", cwd=tmp_path, settings=nowhere)
    assert done.returncode == 7, done.stderr
    assert "the broker does not accept messages" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_wrong_setting_is_named_by_the_programs_of_the_images(tmp_path: Path) -> None:
    for program in ("worker.once", "celery -A worker.app worker"):
        done = subprocess.run(
            [sys.executable, "-m", *program.split()],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=os.environ | {"REPLACEME_MAX_ATTEMPTS": "many", "PYTHONPATH": str(Path.cwd())},
        )
        assert done.returncode == 1
        assert done.stderr.startswith("this worker cannot start: REPLACEME_MAX_ATTEMPTS: ")
        assert len(done.stderr.splitlines()) == 1, done.stderr


def test_missing_torch_is_reported(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('No module named torch')\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", str(Path.cwd()))])
    done = replaceme("worker", "--gpus", "all", cwd=tmp_path, settings={"PYTHONPATH": path})
    assert done.returncode == 2
    assert "install it with: pip install 'replaceme[worker]'" in done.stderr
    assert sys.executable not in done.stderr
