"""The command line as pipelines use it: a job from a file, interruption, and what follows, on the real service."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from api.client.client import Client
from api.client.models import Job
from benchmarks.harness.processes import wait_until
from benchmarks.harness.site import MODEL
from tests.fixtures.service.serve import Command, Serve, environment

JOB = f"model: {MODEL}\nratio: 0.25\ncalibration: builtin:pydoc-topics\n"


def test_a_job_from_a_file_and_what_follows(command: Command, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(JOB + "labels: {team: nlp}\n")
    done = command("submit", "--file", "job.yaml", "--label", "run=7", "--wait", "--json")
    assert done.returncode == 0, done.stderr
    job = json.loads(done.stdout)
    assert job["labels"] == {"team": "nlp", "run": "7"}
    report = command("report", job["id"], "--json")
    assert json.loads(report.stdout)["removed_blocks"] == [2]
    assert "removed 1 of 4 blocks: 2" in command("report", job["id"]).stdout
    assert {one["name"] for one in json.loads(command("metrics", job["id"], "--json").stdout)["items"]} >= {"tokens"}
    logs = command("logs", job["id"], "--follow", "--json")
    assert logs.returncode == 0, logs.stderr
    assert any("a library writes something" in one["text"] for one in json.loads(logs.stdout)["items"])
    again = command("retry", job["id"], "--wait", "--json")
    assert again.returncode == 0, again.stderr
    second = json.loads(again.stdout)
    assert second["retry_of"] == job["id"]
    assert second["labels"] == job["labels"]
    (worker,) = json.loads(command("workers", "--json").stdout)["items"]
    assert worker["alive"]
    assert command("delete", job["id"], second["id"]).returncode == 0
    assert command("status", job["id"]).returncode == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_cancels_its_job(serve: Serve, tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "job.yaml").write_text(JOB)
    mark = {"stub.seconds": "600", "mark": number.name}
    labels = [option for item in mark.items() for option in ("--label", "=".join(item))]
    waiting = subprocess.Popen(
        [sys.executable, "-m", "api.cli", "submit", "--file", "job.yaml", *labels, "--cancel-on-interrupt", "--json"],
        env=environment(REPLACEME_URL=serve.url),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with waiting, Client(serve.url) as client:
        try:

            def job() -> Job:
                return client.jobs(labels=mark).items[0]

            wait_until(
                lambda: client.jobs(labels=mark).items and job().stage == "calibrate", seconds=60, what="a runner"
            )
            waiting.send_signal(number)
            stdout, stderr = waiting.communicate(timeout=60)
        finally:
            waiting.kill()
        assert waiting.returncode == 5, stderr
        assert json.loads(stdout)["status"] == "cancelled"
        assert job().status == "cancelled"
        assert "Traceback" not in stderr
