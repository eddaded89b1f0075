"""`replaceme serve`: the API and the worker start, and neither outlives it, however it ends."""

import os
import pty
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx2
import psutil
import pytest

from api.client.client import Client
from benchmarks.harness.processes import WAIT_SECONDS, wait_until
from benchmarks.harness.site import MODEL
from tests.fixtures.cli.local import run_here
from tests.fixtures.service.serve import REPLACEME, add_model, assert_gone, environment, served

LONG_JOB = {"model": MODEL, "ratio": 0.25, "calibration": "builtin:pydoc-topics", "labels": {"stub.seconds": "600"}}


def test_sigterm_and_then_kill_9_in_the_middle_of_a_job(tmp_path: Path) -> None:
    with served(tmp_path) as serve, Client(serve.url) as client:
        assert (serve.data / "hub").is_dir(), "the embedded default has a directory as the Hub"
        add_model(serve.data / "hub")
        job_id = client.submit(LONG_JOB).id
        wait_until(lambda: client.job(job_id).stage == "calibrate", what="a runner at work")
        family = serve.family()
        assert any("stub_runner" in " ".join(each.cmdline()) for each in family)
        assert serve.stop() == 0
        assert_gone(family)
        assert serve.process.stdout is not None
        assert serve.process.stdout.read() == "", "standard output has the ready line only"
    with served(tmp_path) as serve, Client(serve.url) as client:
        job = client.job(job_id)
        assert job.status in ("queued", "running"), "the ledger persists"
        wait_until(lambda: client.job(job_id).attempt == 2, what="a second attempt")
        wait_until(lambda: client.job(job_id).stage == "calibrate", what="a runner at work")
        assert "released" in [event.type for event in client.history(job_id)], "the job was released immediately"
        family = serve.family()
        serve.process.kill()
        serve.process.wait()
        assert_gone(family)


def test_sigint_on_postgresql_and_redis_and_every_address(tmp_path: Path, postgres_url: str, redis_url: str) -> None:
    hub = tmp_path / "hub"
    add_model(hub)
    settings = {
        "REPLACEME_DATABASE_URL": postgres_url,
        "REPLACEME_BROKER_URL": redis_url,
        "REPLACEME_HUB": f"dir:{hub}",
        "REPLACEME_ALLOW_UNAUTHENTICATED": "true",
        "REPLACEME_ALLOWED_HOSTS": "gpu.example",
    }
    with served(tmp_path, host="0.0.0.0", **settings) as serve:
        port = serve.url.rpartition(":")[2]
        for host, status in (("gpu.example", 200), (f"GPU.example:{port}", 200), ("0.0.0.0", 421)):
            assert (
                httpx2.get(f"http://127.0.0.1:{port}/health", headers={"host": host}, timeout=WAIT_SECONDS).status_code
                == status
            )
        with Client(serve.url) as client:
            job = client.submit({**LONG_JOB, "labels": {}})
            assert client.wait(job.id, timeout=WAIT_SECONDS).status == "succeeded"
        family = serve.family()
        assert serve.stop(signal.SIGINT) == 0
        assert_gone(family)
        assert not (serve.data / "replaceme.sqlite3").exists()
        assert not (serve.data / "hub").exists()


@pytest.mark.parametrize(
    ("words", "name"),
    [(("api.http.server",), "api"), (("api.cli.child_processes", "celery"), "worker")],
    ids=["api", "guard of the worker"],
)
def test_a_child_process_that_dies_ends_the_service(tmp_path: Path, words: tuple[str, ...], name: str) -> None:
    with served(tmp_path) as serve:
        family = serve.family()
        serve.child(*words).kill()
        assert serve.process.wait(timeout=WAIT_SECONDS) == 1
        assert f"error: the {name} process ended" in serve.log.read_text()
        assert_gone(family)


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The one line with which `serve` ends, before it has started a process."""

    def run(*arguments: str, exit_code: int = 2, **settings: str) -> str:
        before = psutil.Process().children(recursive=True)
        done = run_here(monkeypatch, tmp_path, "serve", "--port", "0", *arguments, **settings)
        assert (done.exit_code, done.stdout) == (exit_code, ""), (done.output, done.exception)
        assert psutil.Process().children(recursive=True) == before
        (line,) = done.stderr.splitlines()
        return line

    return run


@pytest.mark.parametrize(
    ("exit_code", "words", "settings"),
    [
        (2, "REPLACEME_LEASE_SECONDS", {"LEASE_SECONDS": "soon"}),
        (2, "expected an address such as", {"BROKER_URL": "redis://:secret/x@127.0.0.1/0"}),
        (2, "expected an address such as", {"DATABASE_URL": "postgresql://u:secret"}),
        (2, "expected dir:PATH, or an endpoint", {"HUB": "https://u:secret@huggingface.co"}),
        (7, "the broker does not accept messages", {"BROKER_URL": "redis://127.0.0.1:1/0"}),
        (7, "database", {"DATABASE_URL": "postgresql+psycopg://x:secret@127.0.0.1:1/x"}),
    ],
)
def test_invalid_settings_are_reported_at_start(
    refused: Callable[..., str], exit_code: int, words: str, settings: dict[str, str]
) -> None:
    error = refused(exit_code=exit_code, **{f"REPLACEME_{name}": value for name, value in settings.items()})
    assert words in error
    assert "secret" not in error


def test_places_where_it_cannot_run(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "cannot be written" in refused("--data", "file")
    assert "set REPLACEME_ALLOW_UNAUTHENTICATED=true" in refused("--host", "0.0.0.0")
    elsewhere = refused("--host", "203.0.113.1", REPLACEME_ALLOW_UNAUTHENTICATED="true")
    assert "cannot listen on 203.0.113.1" in elsewhere
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        assert f"port {port}: Address already in use" in refused("--port", port)
    place = tmp_path / "worker/__init__.py"
    place.parent.mkdir()
    place.touch()
    assert f"{place} would be imported in place of the service's own module" in refused()


def test_at_a_terminal_the_log_is_text_and_ctrl_c_ends_it_quietly(tmp_path: Path) -> None:
    terminal, of_the_service = pty.openpty()
    written: list[bytes] = []

    def read() -> None:
        with suppress(OSError):  # no process has the other end any more
            while chunk := os.read(terminal, 4096):
                written.append(chunk)

    reader = threading.Thread(target=read)
    reader.start()
    process = subprocess.Popen(
        [*REPLACEME, "serve", "--port", "0", "--data", str(tmp_path / "data")],
        env=environment(),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=of_the_service,
        start_new_session=True,
    )
    os.close(of_the_service)
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith(b"ready ")
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does, which signals all of its processes
            assert process.wait(timeout=WAIT_SECONDS) == 0
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    reader.join(timeout=WAIT_SECONDS)
    os.close(terminal)
    lines = b"".join(written).decode().splitlines()
    assert any("Application startup complete" in line for line in lines)
    assert any("Application shutdown complete" in line for line in lines)
    assert [line for line in lines if "Traceback" in line or "Error" in line or "{" in line or "\x1b" in line] == []
