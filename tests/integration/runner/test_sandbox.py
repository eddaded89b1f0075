"""Real runners in each sandbox that works here, and what is said where one does not."""

import os
import pwd
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from benchmarks.harness.processes import wait_until
from replaceme_core.errors import InvalidInput
from replaceme_core.runner.messages import EvaluateRequest, Finished
from replaceme_core.runner.process import Confinement, Runner
from replaceme_core.runner.sandbox import Sandbox, SandboxMode, choose_sandbox

LOOK = """
import ctypes, json, os, socket, sys
from pathlib import Path
request = json.loads(sys.stdin.readline())
text, outside = Path(request["text_path"]), Path(sys.argv[1].removeprefix("hidden:"))

def refused(action):
    try:
        action()
    except OSError:
        return True
    return False

(Path.cwd() / "result").write_text("mine")
report = {
    "text": text.read_text(),
    "text is read only": refused(lambda: text.write_text("changed")),
    "outside is hidden": refused(outside.read_text),
    "devices": [line.split(":")[0].strip() for line in Path("/proc/net/dev").read_text().splitlines()[2:]],
    "sees the worker": Path(f"/proc/{sys.argv[2]}/environ").exists() and os.getpid() != int(sys.argv[2]),
    "processes": sum(name.isdecimal() for name in os.listdir("/proc")),
    "user": os.getuid(),
}
print(json.dumps({"type": "finished", "report": report}), flush=True)
"""


def bubblewrap() -> Sandbox:
    """Bubblewrap where it works, else no sandbox: then the same is expected of a runner, but for what it sees."""
    return choose_sandbox(SandboxMode.AUTO, user=None, own_command=False)


def look(place: Path, sandbox: Sandbox) -> dict[str, object]:
    text, outside = place / "inputs" / "text.txt", place / "secret.txt"
    text.parent.mkdir()
    text.write_text("some text")
    outside.write_text("a token")
    request = EvaluateRequest(model_directory=str(text.parent), text_path=str(text))
    command = [sys.executable, "-c", LOOK, f"hidden:{outside}", str(os.getpid())]
    scratch = place / "scratch"
    with Runner(command, request, scratch=scratch, confinement=Confinement(sandbox=sandbox)) as runner:
        *_, last = runner.messages()
    assert isinstance(last, Finished)
    assert (scratch / "result").read_text() == "mine"
    return last.report


def test_what_a_runner_sees(tmp_path: Path) -> None:
    """In bubblewrap it sees its own files only; where there is none, the report says what is open."""
    sandbox = bubblewrap()
    seen = look(tmp_path, sandbox)
    assert seen["text"] == "some text"
    if sandbox.mode is SandboxMode.BUBBLEWRAP:
        assert seen["text is read only"]
        assert seen["outside is hidden"]
        assert seen["devices"] == ["lo"]
        assert not seen["sees the worker"]
        assert isinstance(seen["processes"], int)
        assert seen["processes"] <= 3
    else:
        assert sandbox.mode is SandboxMode.NONE
        assert "bubblewrap does not work: " in sandbox.describe()
        assert not seen["outside is hidden"]


WAITS = """
import os, signal, subprocess, sys, time
from worker.runner import start_orphan_guard
start_orphan_guard()
def end(number, frame):
    print('{"type": "failed", "code": "cancelled", "message": "asked to stop"}', flush=True)
    os._exit(1)
signal.signal(signal.SIGTERM, end)
print("ready", file=sys.stderr, flush=True)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
time.sleep(600)
"""


@contextmanager
def waiting(place: Path) -> Iterator[Runner]:
    """A runner that has started."""
    request = EvaluateRequest(model_directory=str(place), text_path=str(place))
    command, confinement = [sys.executable, "-c", WAITS], Confinement(sandbox=bubblewrap())
    with Runner(command, request, scratch=place / "scratch", confinement=confinement) as runner:
        wait_until(lambda: "ready" in runner.stderr_tail, what="its start")
        yield runner


def test_sigterm_reaches_the_runner(tmp_path: Path) -> None:
    with waiting(tmp_path) as runner:
        runner.terminate(grace_seconds=600)
        *_, last = runner.messages()
    assert last.type == "failed"


def test_sigkill_ends_all_that_it_started(tmp_path: Path) -> None:
    with waiting(tmp_path) as runner:
        family = psutil.Process(runner.pid).children(recursive=True)
        assert family
        runner.kill()
        runner.close()
        if bubblewrap().mode is SandboxMode.NONE:  # there, what has left the session stays
            family = [each for each in family if each.is_running() and os.getsid(each.pid) == runner.pid]
        wait_until(lambda: not any(each.is_running() for each in family), what="the end of them all")


def chosen(mode: SandboxMode, user: str | None = None) -> Sandbox | str:
    """The sandbox, or why it is refused."""
    try:
        return choose_sandbox(mode, user=user, own_command=False)
    except InvalidInput as error:
        return error.message


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'setting up uid map: Permission denied' >&2; exit 1", "setting up uid map: Permission denied"),
        ("exit 0", "it ends with exit status 0"),
        (None, "there is no program bwrap in PATH"),
    ],
)
def test_a_bubblewrap_that_does_not_work_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, said: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if script is not None:
        (tmp_path / "bwrap").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bwrap").chmod(0o755)
    assert chosen(SandboxMode.BUBBLEWRAP) == (
        f"REPLACEME_SANDBOX=bubblewrap, but bubblewrap does not work: {said}; "
        "fix that, or set REPLACEME_SANDBOX to auto or none"
    )
    found = chosen(SandboxMode.AUTO)
    assert isinstance(found, Sandbox)
    assert found.mode is SandboxMode.NONE
    assert f"bubblewrap does not work: {said}; user does not work: REPLACEME_SANDBOX_USER names no user" in found.reason


@pytest.mark.parametrize(
    ("user", "said"),
    [
        (None, "REPLACEME_SANDBOX_USER names no user"),
        ("nobody-of-that-name", "there is no user 'nobody-of-that-name' (REPLACEME_SANDBOX_USER)"),
        ("root", "'root' is root itself (REPLACEME_SANDBOX_USER)"),
    ],
)
def test_a_user_that_cannot_be_used(user: str | None, said: str) -> None:
    if os.geteuid() != 0 and user is not None:
        said = "this process is not root, so it cannot change its user"
    refusal = chosen(SandboxMode.USER, user)
    assert isinstance(refusal, str)
    assert refusal.startswith(f"REPLACEME_SANDBOX=user, but user does not work: {said}; ")


def test_a_separate_user(tmp_path: Path) -> None:
    """As root it runs as another user, if that one can read this checkout; else the reason is said."""
    sandbox = chosen(SandboxMode.USER, "nobody")
    if isinstance(sandbox, str):
        reasons = ("is not root", "Permission denied", "No module named")
        assert any(reason in sandbox for reason in reasons), sandbox
        return
    for directory in (tmp_path, *tmp_path.parents):
        if directory.owner() == pwd.getpwuid(os.getuid()).pw_name and directory != Path("/"):
            directory.chmod(directory.stat().st_mode | 0o011)
    (tmp_path / "secret.txt").touch(mode=0o600)
    seen = look(tmp_path, sandbox)
    assert seen["user"] == pwd.getpwnam("nobody").pw_uid
    assert seen["text is read only"]
    assert seen["outside is hidden"]
    assert not sandbox.no_network or seen["devices"] == ["lo"]


def test_a_command_of_the_operators_own_is_left_alone() -> None:
    found = choose_sandbox(SandboxMode.AUTO, user=None, own_command=True)
    assert found.mode is SandboxMode.NONE
    assert "REPLACEME_RUNNER_COMMAND starts it" in found.describe()
