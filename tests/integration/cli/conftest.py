"""One service on its embedded default for all tests here, with a stub of the pipeline, and the command beside it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import Result

from api.client.client import Client
from benchmarks.harness.processes import wait_until
from tests.fixtures.cli.local import Run, run_here
from tests.fixtures.service.serve import Serve, add_model, served


@pytest.fixture(scope="package")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    settings = {"REPLACEME_WEBHOOK_NETWORKS": "127.0.0.0/8", "REPLACEME_WEBHOOK_ALLOW_HTTP": "true"}
    with served(tmp_path_factory.mktemp("cli"), **settings) as serve:
        add_model(serve.data / "hub")
        with Client(serve.url, api_key=serve.key) as client:
            wait_until(client.workers, what="the first report of the worker")
        yield serve


@pytest.fixture
def client(serve: Serve) -> Iterator[Client]:
    with Client(serve.url, api_key=serve.key) as client:
        yield client


@pytest.fixture
def command(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    def run(*arguments: str) -> Result:
        return run_here(monkeypatch, tmp_path, *arguments, REPLACEME_URL=serve.url, REPLACEME_API_KEY=serve.key)

    return run
