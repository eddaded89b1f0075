"""The programs of the documents run as they are written there, on the real service."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from api.client.client import Client
from benchmarks.harness.checkout import ROOT
from benchmarks.harness.processes import wait_until
from benchmarks.harness.site import MODEL
from tests.fixtures.service.serve import Serve, add_model, environment, served

EXAMPLES = ROOT / "docs" / "examples"
PAGE = ROOT / "docs" / "how-to" / "use-the-python-client.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
INSTALL = "pip install 'replaceme[cli]'"


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    settings = {"REPLACEME_WEBHOOK_NETWORKS": "127.0.0.0/8", "REPLACEME_WEBHOOK_ALLOW_HTTP": "true"}
    with served(tmp_path_factory.mktemp("examples"), **settings) as serve:
        add_model(serve.data / "hub")
        yield serve


@pytest.fixture
def client(serve: Serve) -> Iterator[Client]:
    with Client(serve.url, api_key=(serve.data / "api-key").read_text().strip()) as client:
        yield client


def variables(serve: Serve) -> dict[str, str]:
    key = (serve.data / "api-key").read_text().strip()
    return {**environment(REPLACEME_URL=serve.url, REPLACEME_API_KEY=key), "PYTHONPATH": str(ROOT)}


def run(*arguments: str, serve: Serve, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run Python in an environment that names the service and its key."""
    return subprocess.run(
        [sys.executable, *arguments],
        env=variables(serve),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_the_code_of_the_page_about_the_clients(serve: Serve, client: Client, tmp_path: Path, number: int) -> None:
    code = BLOCKS[number]
    assert "http://127.0.0.1:8000" in code
    assert "org/name" in code
    before = len(client.jobs(status="succeeded").items)
    code = code.replace("http://127.0.0.1:8000", serve.url).replace("org/name", MODEL)
    done = run("-c", code, serve=serve, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "succeeded" in done.stdout
    assert len(client.jobs(status="succeeded").items) > before


def test_the_page_shows_both_clients() -> None:
    assert len(BLOCKS) == 2
    assert "AsyncClient" not in BLOCKS[0]
    assert "AsyncClient" in BLOCKS[1]


@pytest.mark.parametrize("fails", [False, True])
def test_an_mlops_tool(serve: Serve, client: Client, tmp_path: Path, fails: bool) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    label = f"mark={'fails' if fails else 'works'}"
    where = ("--receive", f"http://127.0.0.1:{port}/replaceme", "--port", str(port))
    stub = ("--label", "stub.fail=space") if fails else ()
    program = str(EXAMPLES / "mlops_tool.py")
    done = run(program, "--model", MODEL, *where, "--label", label, *stub, serve=serve, folder=tmp_path)
    assert done.returncode == int(fails), done.stdout + done.stderr
    jobs = client.jobs(labels={"mark": label.partition("=")[2]}).items
    called = [line for line in done.stdout.splitlines() if line.startswith("called: ")]
    assert len(called) == len(jobs) == (2 if fails else 1), done.stdout
    assert "planned: 1 of 4 blocks" in done.stdout
    if fails:
        assert jobs[0].retry_of == jobs[1].id
    else:
        assert "without the blocks [2]" in done.stdout
    assert client.webhooks.page().items == ()
    assert "mlops" in {key.name for key in client.keys.list()}


def test_a_dashboard(serve: Serve, client: Client, tmp_path: Path) -> None:
    showing = subprocess.Popen(
        [sys.executable, "-u", EXAMPLES / "dashboard.py", "--every", "0.5", "--seconds", "60"],
        env=variables(serve),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with showing:
        try:
            assert showing.stdout is not None
            lines = iter(showing.stdout.readline, "")
            shown = [next(lines)]
            while "unchanged\n" not in shown:  # the stream is open by then
                shown.append(next(lines))
            job = client.submit({"model": MODEL, "ratio": 0.25, "calibration": "builtin:pydoc-topics"})
            while f"succeeded: {job.id} is succeeded\n" not in shown:
                shown.append(next(lines))
        finally:
            showing.kill()
    assert any(re.fullmatch(r"\d+ jobs, \d running\n", line) for line in shown)
    assert any(line.startswith(f"claimed: {job.id}") for line in shown)


def github() -> list[str]:
    (job,) = yaml.safe_load((EXAMPLES / "github-actions.yml").read_text())["jobs"].values()
    return [step["run"] for step in job["steps"] if "run" in step]


def gitlab() -> list[str]:
    job = yaml.safe_load((EXAMPLES / "gitlab-ci.yml").read_text())["compress"]
    return [*job["before_script"], *job["script"]]


def shell(serve: Serve, folder: Path) -> dict[str, str]:
    """The environment of a runner: `pip` notes what it is to install, `replaceme` is that of this checkout."""
    programs = folder / "bin"
    programs.mkdir()
    scripts = {
        "pip": 'printf "%s\\n" "$*" >> "$PIP_LOG"',
        "replaceme": f'exec {shlex.quote(sys.executable)} -m api.cli "$@"',
        "python": f'exec {shlex.quote(sys.executable)} "$@"',
    }
    for name, script in scripts.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    ours = {"GITHUB_SHA": "a" * 40, "GITHUB_RUN_ID": folder.name, "GITHUB_RUN_ATTEMPT": "1", "CI_COMMIT_SHA": "a" * 40}
    ours |= {"CI_JOB_ID": folder.name, "PIP_LOG": str(folder / "pip.log")}
    return {**variables(serve), **ours, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}


def add_job(folder: Path, **labels: str) -> None:
    job = yaml.safe_load((EXAMPLES / "job.yaml").read_text())
    (folder / "job.yaml").write_text(json.dumps({**job, "model": MODEL, "labels": {**job["labels"], **labels}}))


@pytest.mark.parametrize("lines", [github(), gitlab()], ids=["github", "gitlab"])
def test_a_pipeline(serve: Serve, tmp_path: Path, lines: list[str]) -> None:
    add_job(tmp_path)
    variables = shell(serve, tmp_path)
    for line in lines:
        done = subprocess.run(
            ["bash", "-e", "-c", line],
            env=variables,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, (line, done.stderr)
    assert (tmp_path / "pip.log").read_text() == "install replaceme[cli]\n"
    job = json.loads((tmp_path / "job.json").read_text())
    assert (job["status"], job["labels"]["commit"]) == ("succeeded", "a" * 40)
    assert json.loads((tmp_path / "report.json").read_text())["removed_blocks"] == [2]


@pytest.mark.parametrize("lines", [github(), gitlab()], ids=["github", "gitlab"])
def test_a_pipeline_that_is_stopped(serve: Serve, client: Client, tmp_path: Path, lines: list[str]) -> None:
    mark = {"mark": tmp_path.name.replace("_", "-")}
    add_job(tmp_path, **mark, **{"stub.seconds": "600"})
    (line,) = (line for line in lines if "--cancel-on-interrupt" in line)
    step = subprocess.Popen(
        ["bash", "-e", "-c", line], env=shell(serve, tmp_path), cwd=tmp_path, start_new_session=True
    )
    with step:
        try:
            wait_until(
                lambda: [job for job in client.jobs(labels=mark).items if job.stage == "calibrate"],
                seconds=60,
                what="a job at work",
            )
            os.killpg(step.pid, signal.SIGTERM)
            # a shell that did not exec has ended before its command has
            assert step.wait(timeout=60) == (5 if line.startswith("exec ") else -signal.SIGTERM)
            wait_until(
                lambda: [job.status for job in client.jobs(labels=mark).items] == ["cancelled"],
                seconds=30,
                what="the end of the job",
            )
        finally:
            step.kill()


def test_the_pages_say_what_to_install() -> None:
    pages = [*EXAMPLES.glob("*"), ROOT / "docs" / "how-to" / "connect-other-tools.md", PAGE]
    assert len(pages) == 7
    assert [page.name for page in pages if INSTALL not in page.read_text("utf-8")] == ["job.yaml"]
