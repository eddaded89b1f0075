"""The runner process itself, around a pipeline without a model."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from benchmarks.harness.processes import WAIT_SECONDS, wait_until
from benchmarks.harness.site import STUB_RUNNER
from replaceme_core.request.calibration import CalibrationSpec
from replaceme_core.request.spec import CompressionSpec, ModelRef
from replaceme_core.runner.messages import EvaluateRequest, Failed, Finished, Message, RunnerRequest
from replaceme_core.runner.process import RUNNER_COMMAND, Runner
from replaceme_core.runner.sandbox import runner_environment

COMMAND = (sys.executable, str(STUB_RUNNER))

SIGTERM_AT_THE_END = """
import os, signal, sys
from replaceme_core.runner.messages import Finished
from worker import runner

class Stream:
    def flush(self):
        signal.raise_signal(signal.SIGTERM)

runner.start_orphan_guard()
runner.evaluate = lambda request: Finished(report={"done": True})
sys.stderr = Stream()
os._exit(runner.main())
"""

NETWORK = """
import socket
from worker.runner import block_network
block_network()
for attempt in (
    lambda: socket.create_connection(("127.0.0.1", 9)),
    lambda: socket.getaddrinfo("localhost", 80),
    lambda: socket.socket().bind(("127.0.0.1", 0)),
    lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 9)),
    lambda: socket.socket(socket.AF_UNIX).connect("/tmp/none"),
):
    try:
        attempt()
    except PermissionError as error:
        assert "no network" in str(error)
    else:
        raise SystemExit(f"not refused")
"""


def request(tmp_path: Path, **labels: str) -> RunnerRequest:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    spec = CompressionSpec(
        model=ModelRef(repo_id="acme/tiny"),
        ratio=0.25,
        calibration=CalibrationSpec(dataset="builtin:pydoc-topics"),
        labels={name.replace("_", "."): value for name, value in labels.items()},
    )
    return RunnerRequest(
        spec=spec, model_directory=str(model), calibration_paths=(None,), output_directory=str(tmp_path / "output")
    )


@contextmanager
def running(tmp_path: Path, **labels: str) -> Iterator[tuple[Runner, Iterator[Message]]]:
    with Runner(COMMAND, request(tmp_path, **labels), scratch=tmp_path / "scratch") as runner:
        yield runner, runner.messages()


def test_output_of_libraries_does_not_reach_the_messages(tmp_path: Path) -> None:
    with running(tmp_path) as (runner, messages):
        *_, last = messages
        runner.close()
        assert "a library writes something on standard output" in runner.stderr_tail
    assert isinstance(last, Finished)
    assert last.report["loss"] == "nan"
    assert (tmp_path / "output" / "replaceme.json").is_file()


def test_a_result_that_is_there_is_sent_after_sigterm(tmp_path: Path) -> None:
    """Such as when the host shuts down all processes: without a final message the job would fail."""
    asked = EvaluateRequest(model_directory=str(tmp_path), prompts=("x",))
    with Runner((sys.executable, "-c", SIGTERM_AT_THE_END), asked, scratch=tmp_path / "scratch") as runner:
        assert list(runner.messages()) == [Finished(report={"done": True})]


def test_an_error_is_a_final_message_with_its_trace_on_standard_error(tmp_path: Path) -> None:
    with running(tmp_path, stub_fail="bug") as (runner, messages):
        *_, last = messages
        assert runner.close() in (1, -signal.SIGKILL)
        assert any(line.startswith("KeyError") for line in runner.stderr_tail)
    assert last == Failed(
        code="internal_error", message="a mistake of the service (KeyError); the worker's log says more"
    )
    assert not (tmp_path / "output").exists()


def test_it_ends_with_its_parent_together_with_what_it_started(tmp_path: Path) -> None:
    """The parent is killed, so that it cannot send a signal."""
    code = f"""
import sys
from pathlib import Path
from replaceme_core.runner.process import Runner
from replaceme_core.runner.messages import RunnerRequest
request = RunnerRequest.model_validate_json(sys.argv[1])
with Runner({COMMAND!r}, request, scratch=Path(sys.argv[2])) as runner:
    for message in runner.messages():
        print(runner.pid, flush=True)
"""
    line = request(tmp_path, stub_seconds="600", stub_child="yes").model_dump_json()
    parent = subprocess.Popen([sys.executable, "-c", code, line, str(tmp_path / "scratch")], stdout=subprocess.PIPE)
    with parent:
        assert parent.stdout is not None
        runner = psutil.Process(int(parent.stdout.readline()))
        wait_until(lambda: len(runner.children()) == 2, what="the guard and the child")
        family = [runner, *runner.children()]
        parent.kill()
    wait_until(lambda: not any(member.is_running() for member in family), what="the end of them all")


@pytest.mark.parametrize("line", [b"", b'{"spec": 1}\n', b"not json\n"])
def test_an_invalid_request_ends_it(tmp_path: Path, line: bytes) -> None:
    ended = subprocess.run(
        COMMAND,
        input=line,
        capture_output=True,
        timeout=WAIT_SECONDS,
        env=runner_environment(tmp_path),
        check=False,
    )
    assert ended.returncode != 0


def test_it_has_no_network(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", NETWORK], timeout=WAIT_SECONDS, check=True)


def test_a_module_named_worker_in_the_current_directory_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    for directory in (tmp_path, scratch):
        (directory / "worker.py").write_text("raise SystemExit('theirs')\n")
    monkeypatch.chdir(tmp_path)
    with Runner(RUNNER_COMMAND, request(tmp_path), scratch=scratch) as runner:
        *_, last = runner.messages()
    assert isinstance(last, Failed)
    assert last.code == "unsupported_family", "the real runner has read the empty config.json of this model"
