"""What a worker's application decides before it takes messages, and the two steps of its shutdown."""

import signal
from pathlib import Path
from typing import NoReturn

import pytest

import worker.app
import worker.once
from benchmarks.harness.processes import wait_until
from replaceme_core.errors import InvalidInput
from replaceme_core.hardware import WorkerKind
from replaceme_core.settings import Settings
from tests.fixtures.service.serve import torch_that_sees
from worker.app import Drain

JOB_ID = "3f2b8c52-0000-4000-8000-000000000001"
BOTH = (WorkerKind.CPU, WorkerKind.GPU)
OURS = Settings(_env_file=None)


@pytest.fixture(autouse=True)
def _with_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch is asked only where there is one."""
    monkeypatch.setattr("replaceme_core.hardware.accelerators", lambda: [Path("/dev/nvidia0")])


@pytest.mark.parametrize(
    ("named", "gpus", "served"),
    [
        (None, 0, (WorkerKind.CPU,)),
        (None, 1, BOTH),
        ((WorkerKind.GPU,), 1, (WorkerKind.GPU,)),
        ((WorkerKind.CPU,), 0, (WorkerKind.CPU,)),
        ((WorkerKind.CPU,), 1, (WorkerKind.CPU,)),
    ],
)
def test_jobs_for_a_gpu_are_served_where_there_is_one(
    named: tuple[WorkerKind, ...] | None, gpus: int, served: tuple[WorkerKind, ...], tmp_path: Path
) -> None:
    assert worker.app.select_worker_kinds(named, settings=OURS, environ=torch_that_sees(gpus, tmp_path)) == served


def test_a_worker_for_gpu_jobs_without_a_gpu_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="torch sees no GPU"):
        worker.app.select_worker_kinds((WorkerKind.GPU,), settings=OURS, environ=torch_that_sees(0, tmp_path))


def test_a_runner_of_the_operators_own_may_see_other_hardware(tmp_path: Path) -> None:
    sandboxed = Settings(_env_file=None, runner_command=("sandbox", "run"))
    for named, served in ((None, BOTH), ((WorkerKind.GPU,), (WorkerKind.GPU,))):
        assert worker.app.select_worker_kinds(named, settings=sandboxed, environ=torch_that_sees(0, tmp_path)) == served


def test_first_no_new_job_then_the_release() -> None:
    drain = Drain()
    assert (drain.has_begun, drain.must_release) == (False, False)
    drain.begin(seconds=0.2)
    assert (drain.has_begun, drain.must_release) == (True, False)
    wait_until(lambda: drain.must_release, seconds=5, what="the end of the grace")
    drain.begin(seconds=60)
    assert drain.must_release, "a second signal gives no new time"


def test_a_process_for_one_job_drains_at_a_signal_while_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    drain, levels = Drain(), []

    def look(*_: object, **__: object) -> NoReturn:
        signal.raise_signal(signal.SIGTERM)
        levels.append((drain.has_begun, drain.must_release))
        raise InvalidInput("no torch", field="queues")

    monkeypatch.setattr("worker.once.drain", drain)
    monkeypatch.setattr("worker.once.read_settings", lambda: OURS.model_copy(update={"drain_seconds": 0}))
    monkeypatch.setattr("worker.once.select_worker_kinds", look)
    for name in ("configure_logs", "configure_spans"):
        monkeypatch.setattr(f"worker.once.telemetry.{name}", lambda *_, **__: None)
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as for the first process of a container
    try:
        with pytest.raises(SystemExit, match="no torch"):
            worker.once.main([])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert levels == [(True, True)]


def test_a_workspace_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("REPLACEME_DATA", str(tmp_path / "file" / "data"))
    with pytest.raises(SystemExit, match=r"cannot start: .*/file/data.* cannot be written: Not a directory"):
        worker.app.use_own_temporary_directory()


def test_a_message_while_the_database_has_no_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Those of a release whose migrations have not run. A sweep sends another one."""
    monkeypatch.setenv("REPLACEME_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("REPLACEME_DATABASE_URL", raising=False)
    monkeypatch.setattr("worker.app.confinements", [Settings().confinement()])
    supervisor = worker.app.make_supervisor(None)
    monkeypatch.setattr("worker.app._supervisor", lambda pid: supervisor)
    caplog.clear()
    assert worker.app.run_job.apply(args=[JOB_ID]).successful()
    supervisor.database.close()
    logged = [(one.levelname, one.exc_info) for one in caplog.records if one.name == "worker.app"]
    assert logged == [("WARNING", None)]
    assert "its operator must run the migrations" in caplog.text and "Traceback" not in caplog.text
