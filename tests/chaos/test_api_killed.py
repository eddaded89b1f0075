"""SIGKILL of the API while a client submits: accepted jobs are done, and a repeated request is the same job."""

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from uuid import uuid4

import pytest

from benchmarks.harness.fake_hub.faults import Fault
from benchmarks.harness.processes import WAIT_SECONDS, Started, wait_until
from benchmarks.harness.site import MODEL
from replaceme_core.ledger import reading
from replaceme_core.ledger.keys import DEFAULT_OWNER
from tests.fixtures.chaos.cluster import Cluster

pytestmark = pytest.mark.chaos


@dataclass
class Client:
    """One request, repeated until it succeeds."""

    key: str = field(default_factory=lambda: uuid4().hex)
    output: str = field(default_factory=lambda: f"acme/out-{uuid4().hex[:12]}")
    answers: list[dict[str, object]] = field(default_factory=list)

    def send(self, api: Started) -> None:
        body = {"model": MODEL, "ratio": 0.25, "calibration": "builtin:pydoc-topics", "output": self.output}
        headers = {"Content-Type": "application/json", "Idempotency-Key": self.key}
        request = urllib.request.Request(f"{api.url}/jobs", json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=WAIT_SECONDS) as response:
                self.answers.append(json.load(response))
        except (urllib.error.URLError, ConnectionError, OSError):
            pass  # the API was killed

    @contextmanager
    def sending(self, api: Started) -> Iterator[None]:
        thread = threading.Thread(target=self.send, args=(api,))
        thread.start()
        try:
            yield
        finally:
            thread.join()


def jobs_for(cluster: Cluster, output: str) -> list[str]:
    with cluster.database.session(read_only=True) as session:
        jobs = [snapshot.job() for snapshot in reading.page(session, owner=DEFAULT_OWNER, limit=200).items]
        return [job.id for job in jobs if job.spec.output.repo_id == output]


@pytest.fixture
def api(cluster: Cluster) -> Iterator[Callable[[], Started]]:
    """A function that starts the API."""
    started: list[Started] = []

    def start() -> Started:
        started.append(cluster.start_api())
        return started[-1]

    yield start
    for each in started:
        each.kill_tree()


def assert_done_once(cluster: Cluster, client: Client) -> None:
    [job_id] = jobs_for(cluster, client.output)
    assert client.answers
    assert {answer["id"] for answer in client.answers} == {job_id}
    cluster.assert_succeeds(cluster.job(job_id))
    cluster.assert_clean()


@pytest.mark.matrix
def test_before_the_row(cluster: Cluster, api: Callable[[], Started]) -> None:
    client, first = Client(), api()
    rule = cluster.hub.fail(Fault.HOLD, f"^/api/models/{MODEL}", method="GET")
    with client.sending(first):
        wait_until(rule.reached.is_set, what="the request at the Hub")
        first.kill_tree()
    rule.release(carry_out=False)
    assert jobs_for(cluster, client.output) == []
    client.send(api())
    assert_done_once(cluster, client)


@pytest.mark.matrix
def test_between_the_row_and_its_message(cluster: Cluster, api: Callable[[], Started]) -> None:
    """The broker blocks the API after the commit. No message was sent, and the job exists."""
    if cluster.valkey is None:
        pytest.skip("the server is not ours to freeze")
    client, first = Client(), api()
    broker = cluster.valkey.process
    broker.suspend()
    try:
        with client.sending(first):
            wait_until(lambda: jobs_for(cluster, client.output), what="the row")
            first.kill_tree()
    finally:
        broker.resume()
    assert client.answers == []
    client.send(api())
    assert_done_once(cluster, client)


def test_while_the_job_runs(cluster: Cluster, api: Callable[[], Started]) -> None:
    client, first = Client(), api()
    client.send(first)
    [job_id] = jobs_for(cluster, client.output)
    wait_until(lambda: cluster.job(job_id).worker, what="a worker")
    first.kill_tree()
    second = api()
    client.send(second)
    assert_done_once(cluster, client)


@pytest.mark.matrix
def test_the_api_and_a_worker_at_once(cluster: Cluster, api: Callable[[], Started]) -> None:
    client, first = Client(), api()
    rule = cluster.hub.fail(Fault.HOLD_REPLY, f"^/api/models/{client.output}/commit/", method="POST")
    client.send(first)
    wait_until(rule.reached.is_set, what="the commit")
    first.kill_tree()
    [job_id] = jobs_for(cluster, client.output)
    cluster.holder(job_id)[0].kill_tree()
    rule.release()
    client.send(api())
    assert_done_once(cluster, client)
