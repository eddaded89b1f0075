"""A model directory, a text, the command with a runner without a model, and a service with given answers."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import Result

from tests.fixtures.cli.local import CONFIG, Run, run_here, runner
from tests.fixtures.cli.stub_service import StubService, stub_service


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "a model"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(CONFIG))
    (directory / "model.safetensors").write_bytes(b"weights")
    return directory


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "some text.txt"
    file.write_text("words")
    return file


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    directory = tmp_path / "scratch"
    directory.mkdir()
    return directory


@pytest.fixture
def replaceme(scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command in this process; the runner has its own, as always."""

    def run(*arguments: str | Path, mode: str = "good") -> Result:
        monkeypatch.setattr("tempfile.tempdir", str(scratch))
        return run_here(monkeypatch, tmp_path, *arguments, **runner(mode, scratch))

    return run


@pytest.fixture
def service() -> Iterator[StubService]:
    with stub_service() as service:
        yield service


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between repetitions of a request, which are three in any case, and between reads that wait."""
    monkeypatch.setattr("api.client.connection.PAUSES_SECONDS", (0.01, 0.01, 0.01))
    for module in ("client", "connection"):
        monkeypatch.setattr(f"api.client.{module}.POLL_SECONDS", 0.01)
