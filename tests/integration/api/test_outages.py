"""What clients receive while the database or the broker is down, frozen, and up again."""

import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from redis import Redis
from sqlalchemy import make_url, text
from starlette.testclient import TestClient

from api.http.deadline import Deadline
from api.main import create_app
from benchmarks.harness.processes import wait_until
from benchmarks.harness.servers import start_valkey
from replaceme_core.ledger.database import Database
from tests.fixtures.api.requests import SMALLEST, assert_problem
from tests.fixtures.api.service import settings_for

PROMPT_SECONDS = 20.0
"""For a request of many jobs, of which each would wait for a broker that is frozen for 2 seconds."""


class Proxy:
    """A proxy for a server. While `frozen`, connections stay open without traffic; after `stop` they are refused."""

    def __init__(self, connect: Callable[[], socket.socket]) -> None:
        self._connect = connect
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.frozen = threading.Event()
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while not self._stopped.is_set():
            if select.select([self._listener], [], [], 0.05)[0]:
                thread = threading.Thread(target=self._pass_on, args=(self._listener.accept()[0],))
                self._threads.append(thread)
                thread.start()

    def _pass_on(self, near: socket.socket) -> None:
        with suppress(ConnectionError), near, self._connect() as far:  # either side may disconnect at any time
            while not self._stopped.is_set():
                ready = select.select([near, far], [], [], 0.05)[0]
                if self.frozen.is_set():
                    self._stopped.wait(0.05)
                    continue
                for source, sink in ((near, far), (far, near)):
                    if source in ready:
                        data = source.recv(65536)
                        if not data:
                            return
                        sink.sendall(data)

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()
        self._listener.close()


def connect_to_postgres(url: str) -> socket.socket:
    """Connect as libpq does: to a host, or to a socket in a directory."""
    parsed = make_url(url)
    host, port = str(parsed.query.get("host", parsed.host)), parsed.port or int(str(parsed.query.get("port", 5432)))
    if not host.startswith("/"):
        return socket.create_connection((host, port))
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(f"{host}/.s.PGSQL.{port}")
    return connection


def through(proxy: Proxy, url: str) -> str:
    parsed = make_url(url).difference_update_query(["host", "port"]).set(host="127.0.0.1", port=proxy.port)
    return parsed.render_as_string(hide_password=False)


@pytest.fixture
def proxy(postgres_url: str) -> Iterator[Proxy]:
    proxy = Proxy(lambda: connect_to_postgres(postgres_url))
    yield proxy
    proxy.stop()


def test_a_frozen_or_stopped_database_is_503(
    tmp_path: Path, postgres_url: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = create_app(settings_for(tmp_path, database_url=through(proxy, postgres_url)))
    guarded = Deadline(app)
    with TestClient(guarded, raise_server_exceptions=False) as client:
        here = client.post("/jobs", json=SMALLEST).headers["location"]
        jobs = client.get("/jobs").json()
        proxy.frozen.set()
        monkeypatch.setattr("api.http.deadline.READING_SECONDS", 1.0)
        monkeypatch.setattr("api.http.deadline.WRITING_SECONDS", 1.0)
        for _ in range(3):  # at the deadline: else they would wait for the driver, with another code
            assert_problem(client.get(here), status=503, code="unavailable")
            assert_problem(client.post("/jobs", json=SMALLEST), status=503, code="unavailable")
        assert client.get("/health").status_code == 200
        assert_problem(client.get("/ready"), status=503, code="unavailable")
        assert guarded.abandoned
        proxy.frozen.clear()
        wait_until(lambda: client.get(here).status_code == 200, what="responses again")
        wait_until(lambda: not guarded.abandoned, what="the end of abandoned requests")
    with TestClient(app, raise_server_exceptions=False) as client:
        assert client.get("/jobs").json() == jobs, "requests that ended in 503 were not committed afterwards"
        proxy.stop()
        for method, path in (("GET", "/jobs"), ("POST", "/jobs"), ("GET", "/ready")):
            response = client.request(method, path, json=SMALLEST)
            body = assert_problem(response, status=503, code="database_unreachable")
            assert body["detail"] == "the database does not answer", "no wait for a connection of the pool"
            assert response.headers["retry-after"]
        assert client.get("/health").status_code == 200


def test_a_poll_survives_a_restart_of_the_database(tmp_path: Path, postgres_url: str) -> None:
    """Connections are not checked before use; the read is repeated."""
    with TestClient(create_app(settings_for(tmp_path, database_url=postgres_url))) as client:
        here = client.post("/jobs", json=SMALLEST).headers["location"]
        for _ in range(2):
            assert client.get(here).status_code == 200
            other = Database(postgres_url)
            with other.session() as session:
                all_others = "datname = current_database() AND pid <> pg_backend_pid()"
                session.execute(
                    text(f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE {all_others}")
                )
            other.close()
        assert client.get(here).status_code == 200


def test_jobs_are_accepted_at_once_while_the_broker_is_frozen_or_down(tmp_path: Path, sqlite_url: str) -> None:
    with start_valkey() as valkey:
        proxy = Proxy(lambda: socket.create_connection(("127.0.0.1", make_url(valkey.url).port or 6379)))
        settings = settings_for(tmp_path, database_url=sqlite_url, broker_url=f"redis://127.0.0.1:{proxy.port}/0")
        try:
            with TestClient(create_app(settings), raise_server_exceptions=False) as client:
                for begin, end in ((proxy.frozen.set, proxy.frozen.clear), (proxy.stop, proxy.stop)):
                    assert client.post("/jobs", json=SMALLEST).status_code == 202
                    assert client.get("/ready").status_code == 200
                    begin()
                    for body in (SMALLEST, {**SMALLEST, "ratio": [number / 20 for number in range(1, 17)]}):
                        began = time.monotonic()
                        assert client.post("/jobs", json=body).status_code == 202
                        assert time.monotonic() - began < PROMPT_SECONDS
                    assert_problem(client.get("/ready"), status=503, code="queue_unreachable")
                    end()
        finally:
            proxy.stop()


@pytest.mark.parametrize(
    ("begin", "end"),
    [
        pytest.param("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0", id="full"),
        pytest.param("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE", id="replica"),
    ],
)
def test_not_ready_while_the_broker_answers_and_takes_no_messages(
    tmp_path: Path, sqlite_url: str, begin: str, end: str
) -> None:
    with start_valkey() as valkey, Redis.from_url(valkey.url) as server:
        settings = settings_for(tmp_path, database_url=sqlite_url, broker_url=valkey.url)
        with TestClient(create_app(settings)) as client:
            assert client.get("/ready").status_code == 200
            server.execute_command(*begin.split())
            assert client.post("/jobs", json=SMALLEST).status_code == 202
            assert_problem(client.get("/ready"), status=503, code="queue_unreachable")
            server.execute_command(*end.split())
            assert client.get("/ready").status_code == 200
            assert server.dbsize() == 0, "what was asked has left nothing"
