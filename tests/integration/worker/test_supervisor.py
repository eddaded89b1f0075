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
from replaceme_core.ledger import attempts
from replaceme_core.ledger.database import now
from replaceme_core.ledger.states import JobStatus
from replaceme_core.ledger.tables import JobRow
from replaceme_core.runner.messages import Measured, Stage
from tests.fixtures.jobs.ledger import claim_job, succeed
from tests.fixtures.worker.supervisor import OUTPUT, Bench
from worker.supervisor import Supervisor


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
    assert bench.error_of(job_id, hub_patience_seconds=1.5).code == "hub_unreachable"
    assert time.monotonic() - began >= 1.5
    assert bench.remaining == []


def test_a_hub_that_comes_back_is_retried(bench: Bench) -> None:
    job_id = bench.add()
    elsewhere = bench.hub_directory.with_name("elsewhere")
    shutil.move(bench.hub_directory, elsewhere)
    with bench.running(job_id, hub_patience_seconds=20):
        wait_until(lambda: bench.job(job_id).stage is not None, seconds=10, what="the first stage")
        shutil.move(elsewhere, bench.hub_directory)
    assert bench.job(job_id).status is JobStatus.SUCCEEDED


def test_cancel_ends_the_wait_for_a_hub(bench: Bench) -> None:
    job_id = bench.add()
    shutil.move(bench.hub_directory, bench.hub_directory.with_name("elsewhere"))
    with bench.running(job_id, hub_patience_seconds=600):
        wait_until(lambda: bench.job(job_id).stage is not None, seconds=10, what="the first stage")
        bench.cancel(job_id)
    assert bench.job(job_id).status is JobStatus.CANCELLED
    assert bench.remaining == []


def test_the_deadline_ends_the_wait_for_a_hub(bench: Bench) -> None:
    job_id = bench.add(max_runtime_seconds=1)
    shutil.move(bench.hub_directory, bench.hub_directory.with_name("elsewhere"))
    began = time.monotonic()
    assert bench.error_of(job_id, hub_patience_seconds=60).code == "out_of_time"
    assert 1 <= time.monotonic() - began < 10
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
    error = bench.error_of(bench.add(), runner_command=("/nowhere/runner",))
    assert error.code == "internal_error"
    assert "FileNotFoundError" in error.message
    assert "nowhere" not in error.message


def test_a_workspace_that_cannot_be_made_fails_the_job(bench: Bench) -> None:
    bench.settings.resolved_data.mkdir()
    bench.settings.workspace.write_text("in the way")
    bench.error_of(bench.add())


def test_a_model_that_went_bad_after_the_request_fails_with_the_reason(bench: Bench) -> None:
    job_id = bench.add()
    config = bench.hub_directory / "acme" / "tiny" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "auto_map": {"AutoModel": "evil.Model"}}))
    assert bench.error_of(job_id).code == "unsafe_model"


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


def said_by(bench: Bench, expression: str, job_id: str) -> str:
    """What a runner finds, which fails with the value of `expression` as its message. It has read its `request`."""
    script = (
        "import json, os\n"
        "request = json.loads(input())\n"
        f"message = str({expression})\n"
        "print(json.dumps({'type': 'failed', 'code': 'invalid_input', 'message': message}))\n"
    )
    return bench.error_of(job_id, runner_command=(sys.executable, "-c", script)).message


def test_a_runner_works_in_the_attempts_own_directory(bench: Bench) -> None:
    job_id = bench.add()
    said = said_by(bench, "' '.join(os.getcwd().split('/'))", job_id)
    directory = Path("/").joinpath(*said.split(" "))  # as a path it would be cut to its last part
    assert directory.name == "scratch"
    assert directory.parent.parent == bench.settings.workspace
    assert directory.parent.name.startswith(f"{job_id}-1-")


@pytest.mark.parametrize(("worker_kind", "device"), [(WorkerKind.CPU, "cpu"), (WorkerKind.GPU, None), (None, None)])
def test_a_job_for_cpu_workers_stays_on_the_cpu(
    bench: Bench, worker_kind: WorkerKind | None, device: str | None
) -> None:
    assert said_by(bench, "request['spec']['compute']['device']", bench.add(worker_kind=worker_kind)) == str(device)


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


def test_the_runner_receives_what_earlier_jobs_took(bench: Bench) -> None:
    with bench.database.session() as session:
        earlier = claim_job(session, bench.add(worker_kind=WorkerKind.CPU), worker="w", lease_seconds=60)
    with bench.database.session() as session:
        attempts.record_progress(session, earlier, stage=Stage.SELECT, overall=0, fraction=0, eta_seconds=None)
        attempts.add_metrics(
            session, earlier, [Measured(stage=Stage.SELECT, name="modelled_seconds", value=10.0, unit="s")]
        )
        succeed(session, earlier)
    (past,) = json.loads(said_by(bench, "json.dumps(request['history'])", bench.add(worker_kind=WorkerKind.CPU)))
    modelled, took = past["stages"]["select"]
    assert modelled == 10.0
    assert 0 <= took < 60
