"""The code of the how-to pages runs as it is written there, on the real service."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.client.client import Client
from benchmarks.harness.checkout import ROOT
from benchmarks.harness.site import MODEL
from tests.fixtures.service.serve import Serve, add_model, environment, served

PAGE = ROOT / "docs" / "how-to" / "use-the-python-client.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    with served(tmp_path_factory.mktemp("examples")) as serve:
        add_model(serve.data / "hub")
        yield serve


def run(code: str, serve: Serve, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program against `serve`, of whose models it names one."""
    assert "http://127.0.0.1:8000" in code
    assert "org/name" in code
    code = code.replace("http://127.0.0.1:8000", serve.url).replace("org/name", MODEL)
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**environment(), "PYTHONPATH": str(ROOT)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_the_code_of_the_page_about_the_clients(serve: Serve, tmp_path: Path, number: int) -> None:
    before = job_count(serve)
    done = run(BLOCKS[number], serve, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "succeeded" in done.stdout
    assert job_count(serve) > before


def job_count(serve: Serve) -> int:
    with Client(serve.url) as client:
        return len(client.jobs(status="succeeded").items)


def test_the_page_shows_both_clients() -> None:
    assert len(BLOCKS) == 2
    assert "AsyncClient" not in BLOCKS[0]
    assert "AsyncClient" in BLOCKS[1]
