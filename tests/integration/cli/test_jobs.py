"""The command line with the real service, from submission to the end; only the pipeline is a stub."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api.client.client import Client
from benchmarks.harness.processes import WAIT_SECONDS, wait_until
from benchmarks.harness.site import MODEL
from tests.fixtures.cli.local import Run, run_here
from tests.fixtures.service.serve import Serve, environment

SUBMIT = ("submit", "--model", MODEL, "--calibration", "builtin:pydoc-topics")


@pytest.fixture
def busy(client: Client) -> Iterator[str]:
    """The id of a job whose runner works; cancelled at the end."""
    request = {"model": MODEL, "ratio": 0.25, "calibration": "builtin:pydoc-topics"}
    job_id = client.submit({**request, "labels": {"stub.seconds": "600"}}).id
    wait_until(lambda: client.job(job_id).stage == "calibrate", what="a runner at work")
    yield job_id
    if not client.job(job_id).is_terminal:
        client.cancel(job_id)
    client.wait(job_id, timeout=WAIT_SECONDS)


def test_a_job_from_a_file_and_what_follows(command: Run, tmp_path: Path) -> None:
    def in_json(*arguments: str) -> Any:
        done = command(*arguments, "--json")
        assert done.exit_code == 0, done.stderr
        return json.loads(done.stdout)

    file = f"model: {MODEL}\nratio: 0.25\ncalibration: builtin:pydoc-topics\nlabels: {{team: cv}}\n"
    (tmp_path / "job.yaml").write_text(file)
    job = in_json("submit", "--file", "job.yaml", "--label", "run=7", "--wait")
    assert (job["status"], job["labels"]) == ("succeeded", {"team": "cv", "run": "7"})
    assert job["result"]["removed_blocks"] == [2]
    assert set(job["progress"]) == {"overall", "stage", "eta_seconds", "eta_error_seconds"}
    shown = command("status", job["id"]).stdout
    assert "succeeded" in shown and job["result"]["repo_id"] in shown
    assert ["Blocks", "4", "3", "-25.0", "%"] in [line.split() for line in shown.splitlines()]

    listed = in_json("list", "--label", "run=7", "--status", "succeeded")["items"]
    assert [item["id"] for item in listed] == [job["id"]]
    history = in_json("events", job["id"])["items"]
    assert [history[0]["type"], history[-1]["type"]] == ["created", "succeeded"]
    assert len(command("events", job["id"], "--follow").stdout.splitlines()) == len(history)
    assert in_json("report", job["id"])["removed_blocks"] == [2]
    assert "removed 1 of 4 blocks: 2" in command("report", job["id"]).stdout
    assert {one["name"] for one in in_json("metrics", job["id"])["items"]} >= {"tokens"}
    log = in_json("logs", job["id"], "--follow")["items"]
    assert any("a library writes something" in one["text"] for one in log)
    (worker,) = in_json("workers")["items"]
    assert worker["alive"]

    late = command("cancel", job["id"])
    assert (late.exit_code, "Traceback" in late.stderr) == (2, False)
    second = in_json("retry", job["id"], "--wait")
    assert (second["retry_of"], second["labels"]) == (job["id"], job["labels"])
    assert in_json("delete", job["id"], second["id"]) == {"deleted": [job["id"], second["id"]]}
    assert command("status", job["id"]).exit_code == 2


def test_a_plan(command: Run) -> None:
    plan = ("plan", *SUBMIT[1:], "--ratio")
    found = command(*plan, "0.25")
    assert found.exit_code == 0, found.output
    shown = ("1 of 4 blocks", " -> ", "calibrate", "any (estimated for cpu), alive")
    assert [words for words in shown if words not in found.stdout] == []
    assert json.loads(command(*plan, "0.25", "--json").stdout)["estimate"]["blocks"]["removed"] == "1 of 4"
    deepest = command(*plan, "max:0.5", "--gate", "perplexity_ratio<=1.6").stdout
    assert "at most 2 of 4 blocks" in deepest
    assert "for all" in deepest


def test_a_gate_decides_the_exit_code(command: Run) -> None:
    gate = ("--gate", "perplexity_ratio<=1.1", "--gate", "agreement>=0.5")
    done = command(*SUBMIT, "--ratio", "0.25", *gate, "--wait", "--json")
    assert done.exit_code == 4, done.stderr
    job = json.loads(done.stdout)
    assert (job["status"], job["error"]["code"], job["result"]) == ("failed", "gate_rejected", None)
    assert job["spec"]["gate"]["perplexity_ratio"] == {"min": None, "max": 1.1}
    assert [(one["name"], one["passed"]) for one in job["gate"]["criteria"]] == [
        ("perplexity_ratio", False),
        ("agreement", True),
    ]
    row = ["perplexity_ratio", "1.25", "at", "most", "1.1", "✗", "missed"]
    assert row in [line.split() for line in command("status", job["id"]).stdout.splitlines()]


def test_a_job_that_fails(command: Run) -> None:
    done = command(*SUBMIT, "--ratio", "0.25", "--label", "stub.fail=space", "--wait", "--json")
    assert done.exit_code == 3
    assert json.loads(done.stdout)["error"]["code"] == "out_of_space"
    assert "error: out_of_space: no space left" in done.stderr, "it is all that the log of a pipeline has"


def test_cancel_ends_a_running_job(command: Run, busy: str) -> None:
    done = command("cancel", busy)
    assert done.exit_code == 0, done.stderr
    followed = command("events", busy, "--follow", "--json")
    assert json.loads(followed.stdout)["items"][-1]["type"] == "cancelled"
    again = command("cancel", busy, "--json")
    assert again.exit_code == 0
    assert json.loads(again.stdout)["status"] == "cancelled"


def test_a_timeout_leaves_the_job_alone(command: Run, client: Client, busy: str) -> None:
    done = command(*SUBMIT, "--ratio", "0.25", "--timeout", "0.5", "--json")
    assert done.exit_code == 6, done.stderr
    job_id = json.loads(done.stdout)["id"]
    assert f"replaceme status {job_id}" in done.stderr
    assert client.job(job_id).status == "queued"
    client.cancel(job_id)


@pytest.mark.parametrize("number", [signal.SIGTERM, None], ids=str)
def test_a_command_that_waits_when_its_job_is_cancelled(
    serve: Serve, client: Client, tmp_path: Path, number: signal.Signals | None
) -> None:
    """By a signal to the command, or by someone else."""
    mark = {"stub.seconds": "600", "mark": "none" if number is None else number.name}
    labels = [option for item in mark.items() for option in ("--label", "=".join(item))]
    waiting = subprocess.Popen(
        [sys.executable, "-m", "api.cli", *SUBMIT, "--ratio", "0.25", *labels, "--cancel-on-interrupt", "--json"],
        env=environment(REPLACEME_URL=serve.url, REPLACEME_API_KEY=serve.key),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with waiting:
        try:
            wait_until(
                lambda: [job for job in client.jobs(labels=mark).items if job.stage == "calibrate"],
                what="a runner",
            )
            (job,) = client.jobs(labels=mark).items
            client.cancel(job.id) if number is None else waiting.send_signal(number)
            stdout, stderr = waiting.communicate(timeout=WAIT_SECONDS)
        finally:
            waiting.kill()
    assert waiting.returncode == 5, stderr
    assert json.loads(stdout)["status"] == client.job(job.id).status == "cancelled"
    assert "Traceback" not in stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((*SUBMIT, "--ratio", "0.5", "--drop", "1"), "both are given"),
        ((*SUBMIT, "--ratio", "0.5", "--label", "nlp"), "--label"),
        ((*SUBMIT, "--ratio", "0.5", "--idempotency-key", "a b"), "visible ASCII"),
        (("submit", "--model", "acme/none", "--ratio", "0.5", "--calibration", "builtin:pydoc-topics"), "acme/none"),
        (("status", "no-such-job"), "no-such-job"),
        (("status", ".."), "no job '..'"),
        (("list", "--status", "lost"), "status"),
    ],
)
def test_requests_that_the_service_refuses(command: Run, arguments: tuple[str, ...], words: str) -> None:
    done = command(*arguments)
    assert (done.exit_code, done.stdout) == (2, ""), done.output
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_families(command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, local = command("families", "--json"), run_here(monkeypatch, tmp_path, "families", "--json")
    items = [json.loads(each.stdout)["items"] for each in (asked, local)]
    assert items[0] == items[1]
    supported = {item["model_type"]: item["supported"] for item in items[0]}
    assert (supported["llama"], supported["gemma2"], supported["rwkv"]) == (True, True, False)
    lines = command("families").stdout.splitlines()
    assert any(line.startswith("qwen3_moe ") and "least_squares" in line for line in lines)
    assert any(line.startswith("t5 ") and "'t5' is not supported: it is an encoder-decoder" in line for line in lines)


def test_no_service(command: Run) -> None:
    done = command("status", "x", "--url", "http://127.0.0.1:1", "--json")
    assert done.exit_code == 7
    assert json.loads(done.stdout)["error"]["code"] == "service_unreachable"
