"""The service on its embedded default, with a stub of the pipeline, and the command beside it."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.service.serve import Command, Serve, add_model, replaceme, served


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    with served(tmp_path_factory.mktemp("cli")) as serve:
        add_model(serve.data / "hub")
        yield serve


@pytest.fixture
def command(serve: Serve, tmp_path: Path) -> Command:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return replaceme(*arguments, cwd=tmp_path, settings={"REPLACEME_URL": serve.url})

    return run
