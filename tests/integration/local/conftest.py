"""A model directory, a text, and the command with a runner without a model."""

import json
from pathlib import Path

import pytest
from typer.testing import Result

from tests.fixtures.cli.local import CONFIG, Run, run_here, runner


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
