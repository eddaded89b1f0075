"""One installation with the stub runner and one with the real pipeline, both repaired before each test."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks.harness.fake_hub.server import FakeHub
from benchmarks.harness.servers import start_postgres, start_valkey
from benchmarks.harness.site import MODEL
from benchmarks.harness.stub_model import STUB_MODEL
from replaceme_core.ledger.migrate import upgrade
from tests.fixtures.chaos.cluster import Cluster
from tests.fixtures.servers import broker, database

GATED_RUNNER = Path(__file__).parents[1] / "fakes" / "gated_runner.py"


def _cluster(stack: ExitStack, folder: Path, request: pytest.FixtureRequest, *, real: bool) -> Cluster:
    """Servers that the environment names are used; they cannot be stopped."""
    postgres = valkey = None
    if os.environ.get(database.SERVER_VARIABLE, "").startswith("postgres"):
        server = request.getfixturevalue("postgres_server")
    else:
        postgres = stack.enter_context(start_postgres())
        server = postgres.server
    if os.environ.get(broker.SERVER_VARIABLE, "").startswith("redis"):
        broker_url = request.getfixturevalue("redis_server")
        broker.delete_messages(broker_url)
    else:
        valkey = stack.enter_context(start_valkey())
        broker_url = valkey.url
    url = stack.enter_context(server.database())
    upgrade(url)
    hub = stack.enter_context(FakeHub(folder / "hub-store"))
    extra = {}
    if real:
        from tests.fixtures.models.tiny import save_tiny  # not for the stub: it takes seconds to import torch

        hub.add_model(MODEL, save_tiny(folder / "model"))
        extra["REPLACEME_RUNNER_COMMAND"] = json.dumps([sys.executable, str(GATED_RUNNER)])
    else:
        hub.add_model(MODEL, STUB_MODEL)
    cluster = Cluster(
        data=folder / "data",
        database_url=url,
        broker_url=broker_url,
        extra=extra,
        hub=hub,
        postgres=postgres,
        valkey=valkey,
    )
    stack.callback(cluster.close)
    return cluster


@pytest.fixture(scope="package")
def stub_cluster(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with ExitStack() as stack:
        yield _cluster(stack, tmp_path_factory.mktemp("cluster"), request, real=False)


@pytest.fixture(scope="module")
def whole_cluster(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with ExitStack() as stack:
        yield _cluster(stack, tmp_path_factory.mktemp("cluster"), request, real=True)


@pytest.fixture
def cluster(stub_cluster: Cluster) -> Iterator[Cluster]:
    """Two workers around the stub runner."""
    stub_cluster.start_workers()
    yield stub_cluster
    stub_cluster.reset()


@pytest.fixture
def real_cluster(whole_cluster: Cluster) -> Iterator[Cluster]:
    """Two workers around the real pipeline and a tiny model."""
    whole_cluster.start_workers()
    yield whole_cluster
    whole_cluster.reset()
