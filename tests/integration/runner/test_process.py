"""Starting, reading and ending a process that speaks the runner's protocol, or fails to."""

import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from benchmarks.harness.processes import wait_until
from replaceme_core.errors import OutOfMemory
from replaceme_core.runner import process as child
from replaceme_core.runner.messages import Evaluated, EvaluateRequest, Measured
from replaceme_core.runner.oom_kills import OomKills
from replaceme_core.runner.process import PerhapsOutOfMemory, Runner, RunnerBroke, RunnerKilled, runner_environment

REQUEST = EvaluateRequest(model_directory="model", text_path="text")


def python(code: str) -> Sequence[str]:
    return [sys.executable, "-c", code]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return runner_environment(tmp_path)


def test_it_gets_the_request_and_its_messages_are_read(environment: dict[str, str]) -> None:
    code = """
import json, sys
request = json.loads(sys.stdin.readline())
print(json.dumps({"type": "metric", "stage": "solve", "name": "loss", "value": float("nan"), "unit": "nats"}))
print(json.dumps({"type": "evaluated", "report": {"text": request["text_path"]}}), flush=True)
sys.stdin.read()
"""
    with Runner(python(code), REQUEST, environment=environment) as runner:
        metric, last = runner.messages()
    assert isinstance(metric, Measured)
    assert math.isnan(metric.value)
    assert last == Evaluated(report={"text": "text"})


@pytest.mark.parametrize(
    ("code", "error", "text"),
    [
        ("import os; os.kill(os.getpid(), 11)", RunnerBroke, "SIGSEGV"),
        ("raise SystemExit(3)", RunnerBroke, "exit status 3"),
        ("import sys; sys.exit('the reason')", RunnerBroke, "the reason"),
        ("print('chatter')", RunnerBroke, "chatter"),
        ("pass", RunnerBroke, "without a last word"),
    ],
)
def test_a_death_without_a_last_word_says_what_is_known(
    environment: dict[str, str], code: str, error: type[Exception], text: str
) -> None:
    with Runner(python(code), REQUEST, environment=environment) as runner, pytest.raises(error, match=text):
        list(runner.messages())


@pytest.mark.parametrize(
    ("counts", "error"),
    [
        ([OomKills(group=3, machine=7), OomKills(group=4, machine=8)], OutOfMemory),
        ([OomKills(group=3, machine=7), OomKills(group=3, machine=7)], RunnerKilled),
        ([OomKills(group=None, machine=None)] * 2, PerhapsOutOfMemory),
    ],
)
def test_a_sigkill_is_told_apart_by_the_kernels_counts(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, counts: list[OomKills], error: type[Exception]
) -> None:
    told = iter(counts)
    monkeypatch.setattr(child, "count_oom_kills", lambda: next(told))
    code = "import os; os.kill(os.getpid(), 9)"
    with (
        Runner(python(code), REQUEST, environment=environment) as runner,
        pytest.raises(error, match="SIGKILL") as found,
    ):
        list(runner.messages())
    assert type(found.value) is error


def test_a_line_without_end_is_refused(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("replaceme_core.runner.process.LONGEST_MESSAGE", 100_000)
    code = "import sys; sys.stdout.write('x' * 10_000_000)"
    with Runner(python(code), REQUEST, environment=environment) as runner, pytest.raises(RunnerBroke, match="too long"):
        list(runner.messages())


def test_being_killed_by_us_is_not_called_a_lack_of_memory(environment: dict[str, str]) -> None:
    with Runner(python("import time; time.sleep(60)"), REQUEST, environment=environment) as runner:
        runner.kill()
        with pytest.raises(RunnerBroke):
            list(runner.messages())


def test_a_stubborn_one_is_killed_after_the_grace_period(environment: dict[str, str]) -> None:
    code = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", file=sys.stderr, flush=True)
time.sleep(60)
"""
    with Runner(python(code), REQUEST, environment=environment) as runner:
        wait_until(lambda: runner.stderr_tail, seconds=10, what="a first line")
        began = time.monotonic()
        runner.terminate(grace_seconds=0.3)
        assert runner.close() == -9
    assert 0.3 <= time.monotonic() - began < 5


def test_what_it_started_ends_with_it(environment: dict[str, str]) -> None:
    code = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, file=sys.stderr, flush=True)
"""
    with Runner(python(code), REQUEST, environment=environment) as runner:
        began = time.monotonic()
        with pytest.raises(RunnerBroke, match="exit status 0"):  # though its child still holds the pipe
            list(runner.messages())
        assert time.monotonic() - began < 10
        child = int(runner.stderr_tail[0])
    wait_until(lambda: not psutil.pid_exists(child), seconds=5, what="the end of its child")


def test_only_the_end_of_a_flood_on_standard_error_is_kept(environment: dict[str, str]) -> None:
    code = "import sys\nfor n in range(50_000): print('line', n, file=sys.stderr)"
    with Runner(python(code), REQUEST, environment=environment) as runner:
        with pytest.raises(RunnerBroke):
            list(runner.messages())
        runner.close()
    assert len(runner.stderr_tail) == 200
    assert runner.stderr_tail[-1] == "line 49999"


def test_the_environment_is_an_allow_list(tmp_path: Path) -> None:
    base = {
        "PATH": "/bin",
        "LC_ALL": "C",
        "OMP_NUM_THREADS": "2",
        "CUDA_VISIBLE_DEVICES": "0",
        "HOME": "/home/someone",
        "HF_TOKEN": "secret",
        "HF_HOME": "/home/someone/hf",
        "HUGGING_FACE_HUB_TOKEN": "secret",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "REPLACEME_HUB_WRITE_TOKEN": "secret",
        "REPLACEME_DATABASE_URL": "postgresql://user:secret@host/name",
        "HTTPS_PROXY": "http://user:secret@proxy",
    }
    environment = runner_environment(tmp_path, base=base)
    assert "secret" not in str(environment)
    assert not any(name.startswith("REPLACEME_") for name in environment)
    assert environment["OMP_NUM_THREADS"] == "2"
    assert environment["CUDA_VISIBLE_DEVICES"] == "0"
    for name in ("HOME", "TMPDIR", "HF_HOME", "HF_DATASETS_CACHE"):
        assert Path(environment[name]).is_relative_to(tmp_path)
        assert Path(environment[name]).is_dir()
    assert environment["HF_HUB_OFFLINE"] == environment["TRANSFORMERS_OFFLINE"] == "1"
