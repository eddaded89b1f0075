"""Outcomes that a whole worker seldom reaches: real database, real directory hub, a stub in place of the pipeline."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from sqlalchemy import select, update

from benchmarks.harness.jobs import report_of
from replaceme_core.hardware import WorkerKind
from replaceme_core.hub.directory import DirectoryHub
from replaceme_core.hub.port import Publication
from replaceme_core.ledger.database import now
from replaceme_core.ledger.states import JobStatus
from replaceme_core.ledger.tables import JobRow
from replaceme_core.runner.messages import Measured, Stage
from tests.fixtures.jobs.ledger import Ledger
from tests.fixtures.worker.supervisor import OUTPUT, Bench
from worker.supervisor import Supervisor, UnfitMachine
from worker.workspace import checkpoints_of_runner


def test_a_result_that_an_earlier_attempt_published_is_used(bench: Bench, tmp_path: Path) -> None:
    job_id = bench.add()
    ledger = Ledger(bench.database)
    ledger.release(ledger.claim(job_id))  # its worker died after its commit
    result = tmp_path / "result"
    result.mkdir()
    report = {"removed_blocks": [1], "kept_blocks": [0, 2, 3], "seconds": 5}
    (result / "replaceme.json").write_text(json.dumps(report))
    revision = bench.hub.publish(
        Publication(folder=result, repo_id=OUTPUT, private=True, title="t", job_id=job_id),
        before_commit=lambda: None,
    )
    job = bench.run(job_id, runner_command=("/bin/false",))
    assert job.status is JobStatus.SUCCEEDED, job.error
    assert job.attempt == 2
    assert job.result is not None
    assert job.result.revision == revision
    assert job.result.removed_blocks == (1,)
    assert report_of(bench.database, job_id) == report


def test_the_deadline_ends_the_wait_for_a_hub(bench: Bench) -> None:
    job_id = bench.add(max_runtime_seconds=1)
    shutil.move(bench.hub_directory, bench.hub_directory.with_name("elsewhere"))
    assert bench.error_of(job_id, hub_patience_seconds=3600).code == "out_of_time"
    assert bench.remaining == []


def test_the_deadline_counts_from_the_first_start(bench: Bench) -> None:
    job_id = bench.add(max_runtime_seconds=600, stub_seconds="600")
    ledger = Ledger(bench.database)
    ledger.release(ledger.claim(job_id))
    with bench.database.session() as session:
        session.execute(update(JobRow).values(deadline_at=now(plus_seconds=1)))  # 599 seconds ago
    job = bench.run(job_id)
    assert job.error is not None
    assert (job.error.code, job.attempt) == ("out_of_time", 2)


def has_run(bench: Bench, **settings: object) -> bool:
    return Supervisor(
        settings=bench.settings.model_copy(update=settings), database=bench.database, open_hub=lambda: bench.hub
    ).run(None)


@pytest.mark.parametrize("fault", ["workspace", "space", "runner"])
def test_a_machine_that_cannot_run_jobs_claims_none(bench: Bench, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.supervisor.REST_SECONDS", 0)
    job_id = bench.add()
    settings: dict[str, object] = {}
    if fault == "workspace":
        bench.settings.resolved_data.mkdir()
        bench.settings.workspace.write_text("in the way")
    elif fault == "space":
        monkeypatch.setattr("worker.supervisor.LEAST_FREE_BYTES", 2**60)
    else:
        settings["runner_command"] = ("/nowhere/runner",)
    with pytest.raises(UnfitMachine, match="this machine cannot run jobs"):
        has_run(bench, **settings)
    job = bench.job(job_id)
    assert (job.status, job.attempt) == (JobStatus.QUEUED, 0)


@pytest.mark.parametrize(
    ("program", "words"),
    [("#!/nowhere/python\n", "FileNotFoundError"), ("#!/bin/sh\nexit 3\n", "the runner ended with exit status 3")],
)
def test_a_job_that_a_machine_could_not_begin_waits_for_another_one(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, words: str
) -> None:
    monkeypatch.setattr("worker.supervisor.REST_SECONDS", 0)
    broken = tmp_path / "runner"
    broken.write_text(program)
    broken.chmod(0o755)
    settings: dict[str, object] = {"runner_command": (str(broken),), "max_attempts": 2}
    job_id = bench.add()
    assert not has_run(bench, **settings)
    assert not has_run(bench, **settings)
    job = bench.job(job_id)
    assert (job.status, job.attempt) == (JobStatus.QUEUED, 1)  # the second call found none that was due
    with bench.database.session() as session:
        session.execute(update(JobRow).values(not_before=None))
    assert not has_run(bench, **settings)
    job = bench.job(job_id)
    assert job.error is not None
    assert (job.status, job.attempt, job.error.code) == (JobStatus.FAILED, 2, "internal_error")
    assert words in job.error.message
    assert "nowhere" not in job.error.message


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


def test_a_job_whose_specification_cannot_be_read_fails_and_the_next_one_runs(bench: Bench) -> None:
    """It was stored by a later release, before a rollback."""
    unreadable, next_one = bench.add(), bench.add()
    with bench.database.session() as session:
        later = select(JobRow).where(JobRow.id == unreadable)
        row = session.scalars(later).one()
        row.spec = {**row.spec, "later": 1}
    assert bench.run(next_one).status is JobStatus.SUCCEEDED
    with bench.database.session(read_only=True) as session:
        row = session.scalars(later).one()
        assert (row.status, row.error_code) == (JobStatus.FAILED, "invalid_input")
        assert row.error_message is not None
        assert row.error_message.endswith("release: later")


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


def test_all_attempts_at_a_job_share_their_checkpoints(bench: Bench) -> None:
    job_id = bench.add()
    said = [said_by(bench, "' '.join(request['checkpoint_directory'].split('/'))", job_id)]
    bench.queue_again(job_id)
    said.append(said_by(bench, "' '.join(request['checkpoint_directory'].split('/'))", job_id))
    place = checkpoints_of_runner(bench.settings.workspace, job_id)
    assert {Path("/").joinpath(*one.split(" ")) for one in said} == {place}


@pytest.mark.parametrize(
    ("worker_kind", "expected"), [(WorkerKind.CPU, "cpu, False"), (WorkerKind.GPU, "None, True"), (None, "None, False")]
)
def test_a_runner_learns_what_its_job_is_for(bench: Bench, worker_kind: WorkerKind | None, expected: str) -> None:
    """One for CPU workers stays on the CPU; one for a GPU is not done on the CPU should there be none after all."""
    said = said_by(
        bench,
        "request['spec']['compute']['device']) + ', ' + str(request['needs_accelerator']",
        bench.add(worker_kind=worker_kind),
    )
    assert said == expected


def test_the_runner_receives_what_earlier_jobs_took(bench: Bench) -> None:
    ledger = Ledger(bench.database)
    earlier = ledger.claim(bench.add(worker_kind=WorkerKind.CPU))
    ledger.progress(earlier, Stage.SELECT)
    ledger.measure(earlier, Measured(stage=Stage.SELECT, name="modelled_seconds", value=10.0, unit="s"))
    ledger.succeed(earlier)
    (past,) = json.loads(said_by(bench, "json.dumps(request['history'])", bench.add(worker_kind=WorkerKind.CPU)))
    modelled, took = past["stages"]["select"]
    assert modelled == 10.0
    assert 0 <= took < 60
