"""`replaceme serve` as a user starts it, for tests; around a runner without a model."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.fixtures.processes import MODEL, STUB_RUNNER, wait_until

REPLACEME = (sys.executable, "-m", "api.cli")
STARTUP_SECONDS = 60.0
GONE_SECONDS = 30.0


@dataclass(kw_only=True)
class Serve:
    """A running service. `log` is what it wrote on standard error."""

    process: subprocess.Popen[str]
    url: str
    data: Path
    log: Path

    def family(self) -> list[psutil.Process]:
        """Everything it started, down to runners."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def child(self, *words: str) -> psutil.Process:
        """The process whose command line holds all of `words`, and which is no guard unless one asks for it."""
        for process in self.family():
            command = " ".join(process.cmdline())
            if all(word in command for word in words) and ("api.guard" in command) == ("api.guard" in words):
                return process
        raise AssertionError(f"no process {words}: {[process.cmdline() for process in self.family()]}")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """The exit status after a signal."""
        self.process.send_signal(number)
        return self.process.wait(timeout=GONE_SECONDS)


def environment(**settings: str) -> dict[str, str]:
    """Nothing of the tester's own settings; the stub runner."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("REPLACEME_")}
    return {
        **kept,
        "REPLACEME_RUNNER_COMMAND": json.dumps([sys.executable, str(STUB_RUNNER)]),
        "REPLACEME_DRAIN_SECONDS": "1",
        **settings,
    }


def replaceme(
    *arguments: str, cwd: Path, settings: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """One call of the command, in a process of its own."""
    return subprocess.run(
        [*REPLACEME, *arguments],
        env=environment(**(settings or {})),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def add_model(hub: Path) -> None:
    directory = hub / MODEL
    directory.mkdir(parents=True)
    config = {"model_type": "llama", "num_hidden_layers": 4, "hidden_size": 8}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "model.safetensors").write_bytes(b"weights of the source")


@contextmanager
def served(root: Path, *, command: Sequence[str] = REPLACEME, **settings: str) -> Iterator[Serve]:
    """A service on a free port, ended whatever happens. What it started is then gone, too.

    `command` is the `replaceme` to run: this checkout's by default.
    """
    data, log = root / "data", root / "serve.log"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [*command, "serve", "--port", "0", "--data", str(data)],
            env=environment(**settings),
            cwd=root,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    known: list[psutil.Process] = []
    assert process.stdout is not None
    try:
        line = process.stdout.readline()  # ends with the process, at the latest
        assert line.startswith("ready http://127.0.0.1:"), log.read_text()
        serve = Serve(process=process, url=line.removeprefix("ready ").strip(), data=data, log=log)
        known = serve.family()
        yield serve
    finally:
        with suppress(psutil.NoSuchProcess):
            known += psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        process.stdout.close()
        for each in known:
            with suppress(psutil.NoSuchProcess):
                each.kill()


def assert_gone(processes: list[psutil.Process]) -> None:
    wait_until(
        lambda: not [each for each in processes if each.is_running() and each.status() != psutil.STATUS_ZOMBIE],
        seconds=GONE_SECONDS,
        what="the end of everything that was started",
    )
