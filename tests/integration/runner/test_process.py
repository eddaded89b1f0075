"""Starting a runner, reading its messages and ending it, also where it does not follow the protocol."""

import math
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from benchmarks.harness.checkout import ROOT
from benchmarks.harness.processes import wait_until
from replaceme_core.errors import OutOfMemory, ReplaceMeError
from replaceme_core.runner import process as child
from replaceme_core.runner.memory_limit import OomKills
from replaceme_core.runner.messages import LONGEST_LINE, Advanced, EvaluateRequest, Failed, Finished, Measured, Stage
from replaceme_core.runner.process import (
    RUNNER_COMMAND,
    Confinement,
    PerhapsOutOfMemory,
    Runner,
    RunnerBroke,
    RunnerKilled,
    RunnerNeverBegan,
)
from replaceme_core.runner.sandbox import NO_SANDBOX, Sandbox, SandboxMode, choose_sandbox, runner_environment
from replaceme_core.wording import printable
from tests.fixtures.hostile.texts import TEXTS
from tests.fixtures.models.pipeline import request

REQUEST = EvaluateRequest(model_directory="model", text_path="text")


STARTED = Advanced(stage=Stage.CALIBRATE, fraction=0.0).model_dump_json()


def python(code: str) -> Sequence[str]:
    return [sys.executable, "-c", code]


def test_it_gets_the_request_in_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So no `.env` lies beside it; paths that are relative for its parent still lead to the same place."""
    (tmp_path / ".env").write_text("REPLACEME_HUB_WRITE_TOKEN=secret\n")
    (tmp_path / "sandbox").symlink_to(sys.executable)
    monkeypatch.chdir(tmp_path)
    code = """
import json, os, sys
request = json.loads(sys.stdin.readline())
print(json.dumps({"type": "metric", "stage": "solve", "name": "loss", "value": float("nan"), "unit": "nats"}))
report = {"directory": os.getcwd(), "dotenv": os.path.exists(".env"), "text": request["text_path"]}
print(json.dumps({"type": "finished", "report": report}), flush=True)
sys.stdin.read()
"""
    asked = EvaluateRequest(model_directory="model", text_path="text")
    with Runner(["./sandbox", "-c", code], asked, scratch=Path("scratch")) as runner:
        metric, last = runner.messages()
    assert isinstance(metric, Measured)
    assert math.isnan(metric.value)
    expected = {"directory": str(tmp_path / "scratch"), "dotenv": False, "text": str(tmp_path / "text")}
    assert last == Finished(report=expected)


def end_of(code: str, place: Path, *, sandbox: Sandbox = NO_SANDBOX) -> ReplaceMeError:
    """The error of a runner that sends no final message."""
    confinement = Confinement(sandbox=sandbox)
    with (
        Runner(python(code), REQUEST, scratch=place / "scratch", confinement=confinement) as runner,
        pytest.raises(ReplaceMeError) as caught,
    ):
        list(runner.messages())
    return caught.value


@pytest.mark.parametrize("mode", [SandboxMode.NONE, SandboxMode.AUTO])
@pytest.mark.parametrize(
    ("code", "error", "says"),
    [
        ("import os; os.kill(os.getpid(), 11)", RunnerNeverBegan, "SIGSEGV"),
        ("raise SystemExit(3)", RunnerNeverBegan, "exit status 3"),
        (f"print({STARTED!r}); raise SystemExit(3)", RunnerBroke, "exit status 3"),
        ("print('not a message')", RunnerBroke, "not a message"),
        ("pass", RunnerNeverBegan, "without a final message"),
        ("import os; os.kill(os.getpid(), 9)", RunnerKilled, "SIGKILL by another process"),
    ],
)
def test_an_end_without_a_final_message_is_reported_with_its_status(
    tmp_path: Path, code: str, error: type[Exception], says: str, mode: SandboxMode
) -> None:
    """In a sandbox too, where one works here."""
    found = end_of(code, tmp_path, sandbox=choose_sandbox(mode, user=None, own_command=False))
    assert (type(found), says in found.message) == (error, True)


def test_one_without_its_libraries_has_never_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a broken virtual environment: the job is not at fault."""
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch.so: cannot open')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    one = request(tmp_path / "no model")
    with (
        Runner(RUNNER_COMMAND, one, scratch=tmp_path / "scratch") as runner,
        pytest.raises(RunnerNeverBegan, match="exit status 1") as caught,
    ):
        list(runner.messages())
    assert "libtorch.so: cannot open" in caught.value.explained
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with Runner(RUNNER_COMMAND, one, scratch=tmp_path / "scratch") as runner:
        begun, failed = runner.messages()
    assert begun == Advanced(stage=Stage.CALIBRATE, fraction=0.0)
    assert isinstance(failed, Failed)


def test_the_last_line_of_the_log_is_for_the_operator(tmp_path: Path) -> None:
    found = end_of("import sys; sys.exit('the reason')", tmp_path)
    assert "the reason" not in found.message
    assert found.explained.endswith("(the reason)")


Counts = tuple[int | None, int | None]


@pytest.mark.parametrize(
    ("before", "after", "error"),
    [
        ((1, 1), (2, 2), OutOfMemory),
        ((1, 1), (1, 1), RunnerKilled),
        ((1, 1), (1, 2), PerhapsOutOfMemory),
        ((None, 1), (None, 2), OutOfMemory),
        ((None, 1), (None, 1), RunnerKilled),
        ((1, None), (2, None), OutOfMemory),
        ((1, None), (1, None), RunnerKilled),
        ((None, None), (None, None), PerhapsOutOfMemory),
    ],
)
def test_a_sigkill_is_explained_by_the_kernels_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: Counts, after: Counts, error: type[Exception]
) -> None:
    """Of kills in the own group and on the machine."""
    remaining = iter([OomKills(group=group, machine=machine) for group, machine in (before, after)])
    monkeypatch.setattr(child, "count_oom_kills", lambda: next(remaining))
    found = end_of("import os; os.kill(os.getpid(), 9)", tmp_path)
    assert (type(found), "SIGKILL" in found.message) == (error, True)


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("replaceme_core.runner.process.LONGEST_MESSAGE", 100_000)
    assert "too long" in end_of("import sys; sys.stdout.write('x' * 10_000_000)", tmp_path).message


def test_our_own_sigkill_is_not_called_out_of_memory(tmp_path: Path) -> None:
    with Runner(python("import time; time.sleep(600)"), REQUEST, scratch=tmp_path) as runner:
        runner.kill()
        with pytest.raises(RunnerBroke):
            list(runner.messages())


LARGE = EvaluateRequest(model_directory="model", text_path="t" * 300_000)
"""Does not fit into a pipe."""


def test_one_that_sigkill_does_not_end_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its kernel hangs, as the signals that never arrive do here; who reads its messages goes on."""
    monkeypatch.setattr(child, "_KILLED_SECONDS", 0.2)
    with monkeypatch.context() as hanging:
        hanging.setattr(os, "killpg", lambda pid, number: None)
        with Runner(python("import time; time.sleep(600)"), REQUEST, scratch=tmp_path / "scratch") as runner:
            threading.Timer(0.5, runner.kill).start()
            with pytest.raises(RunnerBroke):
                list(runner.messages())
    assert f"process {runner.pid}, a runner, has not ended" in caplog.text
    runner._process.kill()
    runner._process.wait()


def test_a_large_request_arrives_whole(tmp_path: Path) -> None:
    code = "import json\nprint(json.dumps({'type': 'finished', 'report': {'text': json.loads(input())['text_path']}}))"
    with Runner(python(code), LARGE, scratch=tmp_path) as runner:
        assert list(runner.messages()) == [Finished(report={"text": LARGE.text_path})]


def test_one_that_does_not_read_its_request_can_be_ended(tmp_path: Path) -> None:
    with Runner(python("import time; time.sleep(600)"), LARGE, scratch=tmp_path) as runner:
        threading.Timer(1, runner.kill).start()
        with pytest.raises(RunnerBroke):
            list(runner.messages())


def test_what_it_started_ends_with_it(tmp_path: Path) -> None:
    code = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, file=sys.stderr, flush=True)
"""
    with Runner(python(code), REQUEST, scratch=tmp_path) as runner:
        with pytest.raises(RunnerBroke, match="exit status 0"):  # though its child still holds the pipe
            list(runner.messages())
        child = int(runner.stderr_tail[0])
    wait_until(lambda: not psutil.pid_exists(child), what="the end of its child")


def lines_of(code: str, scratch: Path) -> tuple[list[str], list[str]]:
    """What a program writes on standard error: the lines that are passed on, and the last ones."""
    lines: list[str] = []
    with Runner(python(code), REQUEST, scratch=scratch, on_line=lines.append) as runner:
        with pytest.raises(RunnerBroke):
            list(runner.messages())
        return lines, list(runner.end_of_log())


def test_its_lines_are_passed_on_and_the_last_are_kept_printable(tmp_path: Path) -> None:
    """The latter reach the log of the worker and the terminal of who runs a command."""
    texts = [*map(str, range(50_000)), *TEXTS.values(), "\x1b[2J", " 50%|#\r100%|##"]
    (tmp_path / "texts").write_text(repr(texts))
    code = "import sys\nfor text in eval(open('texts').read()): sys.stderr.write(text + chr(10))"
    lines, tail = lines_of(code, tmp_path)
    assert lines[-2:] == ["\x1b[2J", "100%|##"]
    assert tail == [printable(line) for line in lines[-200:]]
    assert len(lines) > 50_000


def test_a_progress_bar_is_one_line_however_often_it_moves(tmp_path: Path) -> None:
    code = "import sys\nfor step in range(5000): sys.stderr.write(f'\\rstep {step}')\nsys.stderr.write('\\r\\nend')"
    assert lines_of(code, tmp_path)[0] == ["step 4999", "end"]


def test_a_long_line_is_passed_on_in_pieces(tmp_path: Path) -> None:
    lines, _ = lines_of("import sys\nsys.stderr.write('x' * 1_000_000)", tmp_path)
    assert "".join(lines) == "x" * 1_000_000
    assert max(map(len, lines)) == LONGEST_LINE, "what the ledger keeps of a line"


def test_words_of_a_long_line_stay_whole(tmp_path: Path) -> None:
    """A half of a secret would be shown, and half a character is none."""
    lines, _ = lines_of("import sys\nsys.stderr.buffer.write(' größer'.encode() * 10_000)", tmp_path)
    assert " ".join(lines).split() == ["größer"] * 10_000
    assert max(map(len, lines)) <= LONGEST_LINE


def test_the_environment_is_an_allow_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = {
        "PATH": "bin:/bin",
        "PYTHONPATH": "src:/opt/lib:",
        "LD_LIBRARY_PATH": "",
        "OMP_NUM_THREADS": "2",
        "CUDA_VISIBLE_DEVICES": "0",
        "CUDA_REGISTRY_PASSWORD": "secret",
        "LC_TOKEN": "secret",
        "OMP_": "secret",
        "HOME": "/home/someone",
        "HF_TOKEN": "secret",
        "HF_HOME": "/home/someone/hf",
        "HUGGING_FACE_HUB_TOKEN": "secret",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "REPLACEME_HUB_WRITE_TOKEN": "secret",
        "REPLACEME_DATABASE_URL": "postgresql://user:secret@host/name",
        "HTTPS_PROXY": "http://user:secret@proxy",
    }
    monkeypatch.setattr(os, "environ", base)
    monkeypatch.chdir(tmp_path)
    environment = runner_environment(Path("scratch"))
    assert "secret" not in str(environment)
    assert not any(name.startswith("REPLACEME_") for name in environment)
    assert environment["OMP_NUM_THREADS"] == "2"
    assert environment["CUDA_VISIBLE_DEVICES"] == "0"
    for name in ("HOME", "TMPDIR", "HF_HOME"):
        assert Path(environment[name]).is_relative_to(tmp_path / "scratch")
        assert Path(environment[name]).is_dir()
    assert environment["HF_HUB_OFFLINE"] == environment["TRANSFORMERS_OFFLINE"] == "1"
    lists = [environment[name] for name in ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")]
    assert lists == [f"{tmp_path}/bin:/bin", f"{tmp_path}/src:/opt/lib:{tmp_path}", ""], "absolute, as its directory is"
