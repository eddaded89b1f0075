"""Limits of a job: the time of a stage, whatever the runner does, and the sandbox of a real worker."""

import re
import time
from typing import IO

import httpx2
import pytest

from benchmarks.harness.processes import WAIT_SECONDS, wait_until
from benchmarks.harness.site import Site
from replaceme_core.ledger.states import JobStatus
from replaceme_core.runner.process import Runner
from replaceme_core.runner.sandbox import SandboxMode, choose_sandbox
from tests.fixtures.worker.supervisor import Bench


def test_a_stage_that_takes_too_long_fails_the_job(bench: Bench) -> None:
    """Also where the runner ignores SIGTERM, as one does that is in native code. Zero is no limit."""
    job_id = bench.add(stub_seconds="600", stub_stubborn="yes")
    error = bench.error_of(job_id, stage_seconds=3, cancel_grace_seconds=0.5)
    assert (error.code, error.message) == (
        "stage_timeout",
        "the stage calibrate was not done within 3 s, the limit that REPLACEME_STAGE_SECONDS sets",
    )
    assert bench.remaining == []
    assert bench.run(bench.add(stub_seconds="0.1"), stage_seconds=0).status is JobStatus.SUCCEEDED


def test_a_real_worker_in_its_sandbox(embedded_site: Site) -> None:
    """The stub runner runs a job in the sandbox that works here; the log and `/ready` name it.

    The logs of both processes name a setting that is misspelt.
    """
    mode = choose_sandbox(SandboxMode.AUTO, user=None, own_command=False).mode
    embedded_site.extra |= {"REPLACEME_SANDBOX": mode, "REPLACEME_REQUIRE_KEYS": "true"}
    worker, api = embedded_site.start_worker(), embedded_site.start_api()
    job = embedded_site.wait_for_end(embedded_site.add())
    assert job.status is JobStatus.SUCCEEDED, job.error
    assert f"sandbox of runners: {mode}" in worker.log.read_text()
    assert re.search(r"memory limit of runners: \S+", worker.log.read_text())
    assert all("REPLACEME_REQUIRE_KEYS is no setting" in one.log.read_text() for one in (worker, api))

    def sandboxes() -> object:
        return httpx2.get(f"{api.url}/ready", timeout=WAIT_SECONDS, trust_env=False).json()["sandboxes"]

    wait_until(lambda: sandboxes() == [mode], what="the first report of the worker")
    worker.stop()
    assert sandboxes() == []


def test_a_worker_refuses_to_start_without_its_sandbox(embedded_site: Site) -> None:
    embedded_site.extra |= {"REPLACEME_SANDBOX": "user", "REPLACEME_SANDBOX_USER": "nobody-of-that-name"}
    started = embedded_site.launch_worker()
    started.process.wait(timeout=120)
    assert started.process.returncode != 0
    log = started.log.read_text()
    assert "this worker cannot start: REPLACEME_SANDBOX=user, but user does not work: " in log
    assert "Traceback" not in log


def _shows_a_traceback(caplog: pytest.LogCaptureFixture) -> bool:
    """Among the lines of the runner that the worker logs."""
    return any("Traceback" in str(getattr(record, "lines", "")) for record in caplog.records)


@pytest.mark.parametrize(
    ("how", "code", "text", "traces"),
    [
        ("space", "out_of_space", "no space left", False),
        ("memory", "out_of_memory", "9 TB could not be allocated", False),
        ("input", "calibration_too_small", "the text has 12 tokens, 1024 are needed", False),
        ("bug", "internal_error", "KeyError", True),
        ("exit", "internal_error", "exit status 3", False),
    ],
)
def test_each_failure_has_its_code_and_a_mistake_of_ours_a_traceback(
    bench: Bench, caplog: pytest.LogCaptureFixture, how: str, code: str, text: str, traces: bool
) -> None:
    """A full disk and full memory explain themselves."""
    error = bench.error_of(bench.add(stub_fail=how))
    assert (error.code, text in error.message) == (code, True), error
    assert _shows_a_traceback(caplog) is traces
    assert not list(bench.hub_directory.glob("*/smaller"))
    assert bench.remaining == []


def test_the_log_of_a_mistake_is_read_to_its_end(
    bench: Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Runner._keep_tail

    def read_late(runner: Runner, stream: IO[bytes]) -> None:
        time.sleep(1)
        read(runner, stream)

    monkeypatch.setattr(Runner, "_keep_tail", read_late)
    bench.error_of(bench.add(stub_fail="bug"))
    assert _shows_a_traceback(caplog)
