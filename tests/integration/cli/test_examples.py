"""The programs of the documents run as they are written there, on the real service."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import yaml

from api.client.client import Client
from benchmarks.harness.checkout import ROOT
from benchmarks.harness.servers import free_port
from benchmarks.harness.site import MODEL
from tests.fixtures.service.serve import Serve, environment
from tests.fixtures.service.wheel import empty_environment

EXAMPLES = ROOT / "docs" / "examples"
PAGE = ROOT / "docs" / "how-to" / "use-the-python-client.md"
(CODE,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


def variables(serve: Serve) -> dict[str, str]:
    """An environment that names the service and its key."""
    return {**environment(REPLACEME_URL=serve.url, REPLACEME_API_KEY=serve.key), "PYTHONPATH": str(ROOT)}


def run(*command: str | Path, env: Mapping[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def test_the_code_of_the_page_about_the_client(serve: Serve, client: Client, tmp_path: Path) -> None:
    assert "http://127.0.0.1:8000" in CODE
    assert "org/name" in CODE
    before = len(client.jobs(status="succeeded").items)
    code = CODE.replace("http://127.0.0.1:8000", serve.url).replace("org/name", MODEL)
    done = run(sys.executable, "-c", code, env=variables(serve), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "succeeded" in done.stdout
    assert len(client.jobs(status="succeeded").items) > before


@pytest.mark.parametrize("fails", [False, True])
def test_an_mlops_tool(serve: Serve, client: Client, tmp_path: Path, fails: bool) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    label = f"mark={'fails' if fails else 'works'}"
    where = ("--receive", f"http://127.0.0.1:{port}/replaceme", "--port", str(port))
    stub = ("--label", "stub.fail=space") if fails else ()
    program = (sys.executable, EXAMPLES / "mlops_tool.py", "--model", MODEL, *where, "--label", label, *stub)
    done = run(*program, env=variables(serve), folder=tmp_path)
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


def test_an_mlops_tool_says_what_is_wrong_with_its_request(serve: Serve, tmp_path: Path) -> None:
    program = (sys.executable, EXAMPLES / "mlops_tool.py", "--receive", "http://127.0.0.1:9/", "--port", "0")
    done = run(*program, "--model", "no repository", env=variables(serve), folder=tmp_path)
    assert (done.returncode, done.stderr) == (1, ""), done.stdout + done.stderr
    assert "refused: " in done.stdout


def test_a_dashboard(serve: Serve, client: Client, tmp_path: Path) -> None:
    showing = subprocess.Popen(
        [sys.executable, EXAMPLES / "dashboard.py", "--every", "0.5"],
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
            asked = {"model": MODEL, "ratio": 0.25, "calibration": "builtin:pydoc-topics"}
            while not any(" is " in line for line in shown):  # the stream opens while others are shown
                client.submit(asked)
                shown += [next(lines) for _ in range(3)]
            job = client.submit(asked)
            while not {f"succeeded: {job.id} is succeeded\n", "unchanged\n"} <= set(shown):
                shown.append(next(lines))
        finally:
            showing.kill()
    assert any(re.fullmatch(r"\d+ jobs, \d running\n", line) for line in shown)
    assert any(line.startswith(f"claimed: {job.id}") for line in shown)


def test_a_dashboard_waits_for_a_service_that_is_away(serve: Serve, tmp_path: Path) -> None:
    program = (sys.executable, EXAMPLES / "dashboard.py", "--every", "0.1")
    away = {**variables(serve), "REPLACEME_URL": f"http://127.0.0.1:{free_port()}"}
    with subprocess.Popen(program, env=away, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as showing:
        assert showing.stdout is not None
        lines = [showing.stdout.readline() for _ in range(2)]
        showing.kill()
    assert all(line.startswith("no answer: ") for line in lines), lines


VARIABLES = ("REPLACEME_PACKAGE", "REPLACEME_URL", "REPLACEME_API_KEY")
KEPT = {"job.json", "report.json", "gate.xml"}
Steps = tuple[Sequence[str], Sequence[str]]
"""The steps of a pipeline, and those that run in any case after them."""


def github() -> Steps:
    (job,) = yaml.safe_load((EXAMPLES / "github-actions.yml").read_text())["jobs"].values()
    kinds = ("vars", "vars", "secrets")
    assert job["env"] == {name: f"${{{{ {kind}.{name} }}}}" for name, kind in zip(VARIABLES, kinds, strict=True)}
    (upload,) = (step for step in job["steps"] if "upload-artifact" in step.get("uses", ""))
    assert (upload["if"], {*upload["with"]["path"].split()}) == ("always()", KEPT)
    steps, in_any_case = (
        [step["run"] for step in job["steps"] if "run" in step and step.get("if") == condition]
        for condition in (None, "always()")
    )
    return steps, in_any_case


def gitlab() -> Steps:
    job = yaml.safe_load((EXAMPLES / "gitlab-ci.yml").read_text())["compress"]
    assert job["artifacts"]["when"] == "always"
    assert {*job["artifacts"]["paths"], job["artifacts"]["reports"]["junit"]} == KEPT
    return [*job["before_script"], *job["script"]], job["after_script"]


def of_a_runner(serve: Serve, python: Path, folder: Path, **ours: str) -> dict[str, str]:
    """The environment of a pipeline's runner, with the variables that the example asks for and no others of ours."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("REPLACEME_", "PIP_", "PYTHON"))}
    system = {"GITHUB_SHA": "a" * 40, "GITHUB_RUN_ID": folder.name, "GITHUB_RUN_ATTEMPT": "1"}
    system |= {"CI_COMMIT_SHA": "a" * 40, "CI_JOB_ID": folder.name, "GITHUB_STEP_SUMMARY": str(folder / "summary.md")}
    system |= {"PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}", "PIP_NO_INDEX": "1"}
    return {**kept, **system, "REPLACEME_URL": serve.url, "REPLACEME_API_KEY": serve.key, **ours}


@pytest.mark.parametrize("pipeline", [github(), gitlab()], ids=["github", "gitlab"])
def test_a_pipeline(serve: Serve, wheel: Path, tmp_path: Path, pipeline: Steps) -> None:
    """It installs the command from the wheel's URL or an index, keeps what it found, and fails on a missed gate."""
    indexed = passes = pipeline == gitlab()
    job = yaml.safe_load((EXAMPLES / "job.yaml").read_text()) | {"model": MODEL}
    job["labels"] |= {} if passes else {"stub.ratio": "1.75"}
    (tmp_path / "job.yaml").write_text(json.dumps(job))
    (install, *steps), in_any_case = pipeline
    installed = empty_environment(tmp_path / "venv")
    settings = of_a_runner(serve, installed.python, tmp_path)
    done = run("bash", "-e", "-c", install, env=settings, folder=tmp_path)
    assert done.returncode != 0
    assert "REPLACEME_PACKAGE: the variable is not set" in done.stderr
    package, links = ("replaceme", str(wheel.parent)) if indexed else (wheel.as_uri(), "")
    settings = of_a_runner(serve, installed.python, tmp_path, REPLACEME_PACKAGE=package, PIP_FIND_LINKS=links)
    code = 0
    kept = "\n".join(in_any_case)
    for line in (install, *steps, kept):
        if not code or line == kept:
            done = run("bash", "-e", "-c", line, env=settings, folder=tmp_path)
            code = code or done.returncode
    assert code == (0 if passes else 4), done.stderr
    assert installed.command.exists()
    job = json.loads((tmp_path / "job.json").read_text())
    assert (job["status"], job["labels"]["commit"]) == ("succeeded" if passes else "failed", "a" * 40)
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["removed_blocks"], report["gate"]["passed"]) == ([2], passes)
    assert ("<failure" in (tmp_path / "gate.xml").read_text()) is not passes
    assert any("--cancel-on-interrupt" in step for step in steps)
    assert f"| {'passed' if passes else '✗ missed'} |" in (tmp_path / "summary.md").read_text()
    for refused in ("", '{"error": {}}'):  # no job was submitted, so there is none to report on
        (tmp_path / "job.json").write_text(refused)
        done = run("bash", "-e", "-c", kept, env=settings, folder=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
