"""Outcomes that a whole worker seldom reaches: real database, real directory hub, a stub in place of the pipeline."""

import json
import shutil
import sys
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import update

from benchmarks.harness.jobs import report_of
from benchmarks.harness.processes import wait_until
from replaceme_core.hardware import WorkerKind
from replaceme_core.hub.directory import DirectoryHub
from replaceme_core.hub.port import Publication
from replaceme_core.ledger import attempts, changes
from replaceme_core.ledger.database import Database, now
from replaceme_core.ledger.states import JobStatus
from replaceme_core.ledger.tables import JobRow
from replaceme_core.runner.messages import Measured, Stage
from tests.fixtures.jobs.ledger import claim_job, succeed
from tests.fixtures.worker.supervisor import OUTPUT, Bench
from worker.supervisor import Supervisor


@pytest.fixture
def bench(tmp_path: Path, sqlite_url: str, sqlite_database: Database) -> Bench:
    return Bench(tmp_path, sqlite_url, sqlite_database)


def test_a_result_that_an_earlier_attempt_published_is_used(bench: Bench, tmp_path: Path) -> None:
    job_id = bench.add()
    with bench.database.session() as session:
        attempts.release(
            session, claim_job(session, job_id, worker="gone", lease_seconds=60), reason="died after its commit"
        )
    result = tmp_path / "result"
    result.mkdir()
    report = {"removed_blocks": [1], "kept_blocks": [0, 2, 3], "seconds": 5}
    (result / "replaceme.json").write_text(json.dumps(report))
    revision = bench.hub.publish(
        Publication(folder=result, repo_id=OUTPUT, private=True, title="t", trailer=f"ReplaceMe-Job: {job_id}"),
        before_commit=lambda: None,
    )
    job = bench.run(job_id, runner_command=("/bin/false",))
    assert job.status is JobStatus.SUCCEEDED, job.error
    assert job.attempt == 2
    assert job.result is not None
    assert job.result.revision == revision
    assert job.result.removed_blocks == (1,)
    assert report_of(bench.database, job_id) == report


def test_a_hub_that_stays_unreachable_fails_the_job(bench: Bench) -> None:
    job_id = bench.add()
    shutil.move(bench.hub_directory, bench.hub_directory.with_name("elsewhere"))
    began = time.monotonic()
    job = bench.run(job_id, hub_patience_seconds=1.5)
    assert time.monotonic() - began >= 1.5
    assert job.status is JobStatus.FAILED
    assert job.error is not None
    assert job.error.code == "hub_unreachable"
    assert bench.remaining == []


def test_a_hub_that_comes_back_is_retried(bench: Bench) -> None:
    job_id = bench.add()
    elsewhere = bench.hub_directory.with_name("elsewhere")
    shutil.move(bench.hub_directory, elsewhere)
    work = threading.Thread(target=bench.run, args=(job_id,), kwargs={"hub_patience_seconds": 20})
    work.start()
    wait_until(lambda: bench.job(job_id).stage is not None, seconds=10, what="the first stage")
    shutil.move(elsewhere, bench.hub_directory)
    work.join(timeout=30)
    assert bench.job(job_id).status is JobStatus.SUCCEEDED


def test_cancel_ends_the_wait_for_a_hub(bench: Bench) -> None:
    job_id = bench.add()
    shutil.move(bench.hub_directory, bench.hub_directory.with_name("elsewhere"))
    work = threading.Thread(target=bench.run, args=(job_id,), kwargs={"hub_patience_seconds": 60})
    work.start()
    wait_until(lambda: bench.job(job_id).stage is not None, seconds=10, what="the first stage")
    with bench.database.session() as session:
        changes.request_cancel(session, job_id, owner="tests")
    work.join(timeout=5)
    assert not work.is_alive()
    assert bench.job(job_id).status is JobStatus.CANCELLED
    assert bench.remaining == []


def test_the_deadline_ends_the_wait_for_a_hub(bench: Bench) -> None:
    job_id = bench.add(max_runtime_seconds=1)
    shutil.move(bench.hub_directory, bench.hub_directory.with_name("elsewhere"))
    began = time.monotonic()
    job = bench.run(job_id, hub_patience_seconds=60)
    assert 1 <= time.monotonic() - began < 10
    assert job.error is not None
    assert (job.status, job.error.code) == (JobStatus.FAILED, "out_of_time")
    assert bench.remaining == []


def test_the_deadline_counts_from_the_first_start(bench: Bench) -> None:
    job_id = bench.add(max_runtime_seconds=600, stub_seconds="60")
    with bench.database.session() as session:
        attempts.release(session, claim_job(session, job_id, worker="gone", lease_seconds=60), reason="shut down")
        session.execute(update(JobRow).values(deadline_at=now(plus_seconds=1)))  # 599 seconds ago
    job = bench.run(job_id)
    assert job.error is not None
    assert (job.error.code, job.attempt) == ("out_of_time", 2)


def test_a_runner_that_cannot_be_started_fails_the_job(bench: Bench) -> None:
    job = bench.run(bench.add(), runner_command=("/nowhere/runner",))
    assert job.error is not None
    assert job.error.code == "internal_error"
    assert "FileNotFoundError" in job.error.message
    assert "nowhere" not in job.error.message


def test_a_workspace_that_cannot_be_made_fails_the_job(bench: Bench) -> None:
    bench.settings.resolved_data.mkdir()
    bench.settings.workspace.write_text("in the way")
    job = bench.run(bench.add())
    assert job.status is JobStatus.FAILED


@pytest.mark.parametrize("job_id", ["00000000-0000-4000-8000-000000000000", "nonsense", ""])
def test_a_message_for_a_job_that_is_not_there_is_dropped(bench: Bench, job_id: str) -> None:
    Supervisor(settings=bench.settings, database=bench.database, open_hub=lambda: bench.hub).run(job_id)


def test_a_shutdown_in_the_middle_releases_the_job(bench: Bench) -> None:
    def shut_down() -> DirectoryHub:
        raise SystemExit

    job_id = bench.add()
    with pytest.raises(SystemExit):
        Supervisor(settings=bench.settings, database=bench.database, open_hub=shut_down).run(job_id)
    assert bench.job(job_id).status is JobStatus.QUEUED


REPORTS_ITS_DEVICE = """
import json, sys
device = json.loads(sys.stdin.readline())["spec"]["compute"]["device"]
print(json.dumps({"type": "failed", "code": "internal_error", "message": f"device {device}"}))
"""


REPORTS_ITS_DIRECTORY = """
import json, os
print(json.dumps({"type": "failed", "code": "internal_error", "message": " ".join(os.getcwd().split("/"))}))
"""


def test_a_runner_works_in_the_attempts_own_directory(bench: Bench) -> None:
    job_id = bench.add()
    job = bench.run(job_id, runner_command=(sys.executable, "-c", REPORTS_ITS_DIRECTORY))
    assert job.error is not None
    directory = Path("/").joinpath(*job.error.message.split(" "))  # as a path it would be cut to its last part
    assert directory.name == "scratch"
    assert directory.parent.parent == bench.settings.workspace
    assert directory.parent.name.startswith(f"{job_id}-1-")


@pytest.mark.parametrize(("worker_kind", "device"), [(WorkerKind.CPU, "cpu"), (WorkerKind.GPU, None), (None, None)])
def test_a_job_for_cpu_workers_stays_on_the_cpu(
    bench: Bench, worker_kind: WorkerKind | None, device: str | None
) -> None:
    job_id = bench.add(worker_kind=worker_kind)
    job = bench.run(job_id, runner_command=(sys.executable, "-c", REPORTS_ITS_DEVICE))
    assert job.error is not None
    assert job.error.message == f"device {device}"


def test_a_worker_that_shuts_down_releases_its_job_and_wakes_up_another(bench: Bench) -> None:
    job_id = bench.add(worker_kind=WorkerKind.GPU, stub_seconds="60")
    enqueued: list[tuple[str, WorkerKind | None]] = []
    must_release = threading.Event()
    supervisor = Supervisor(
        settings=bench.settings,
        database=bench.database,
        open_hub=lambda: bench.hub,
        enqueue=lambda *job: enqueued.append(job),
        must_release=must_release.is_set,
    )
    work = threading.Thread(target=supervisor.run, args=(job_id,))
    work.start()
    wait_until(lambda: bench.job(job_id).stage is Stage.CALIBRATE, seconds=30, what="a runner at work")
    assert enqueued == []
    must_release.set()
    work.join(timeout=20)
    assert not work.is_alive()
    job = bench.job(job_id)
    assert (job.status, job.worker_kind) == (JobStatus.QUEUED, WorkerKind.CPU), "the stub runner resolved its device"
    assert enqueued == [(job_id, WorkerKind.CPU)]
    assert bench.remaining == []


def test_the_runner_receives_what_earlier_jobs_took(bench: Bench, tmp_path: Path) -> None:
    """The runner is a script that fails with the history as its message."""
    with bench.database.session() as session:
        earlier = claim_job(session, bench.add(worker_kind=WorkerKind.CPU), worker="w", lease_seconds=60)
    with bench.database.session() as session:
        attempts.record_progress(session, earlier, stage=Stage.SELECT, overall=0, fraction=0, eta_seconds=None)
        attempts.add_metrics(
            session, earlier, [Measured(stage=Stage.SELECT, name="modelled_seconds", value=10.0, unit="s")]
        )
        succeed(session, earlier)
    script = tmp_path / "runner.py"
    script.write_text(
        "import json\n"
        "history = json.dumps(json.loads(input())['history'])\n"
        "print(json.dumps({'type': 'failed', 'code': 'invalid_input', 'message': history}))\n"
    )
    job = bench.run(bench.add(worker_kind=WorkerKind.CPU), runner_command=(sys.executable, str(script)))
    assert job.error is not None
    (past,) = json.loads(job.error.message)
    modelled, took = past["stages"]["select"]
    assert modelled == 10.0
    assert 0 <= took < 60
