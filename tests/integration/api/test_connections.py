"""Clients that hold connections, streams and halves of requests, or send headers without end: others are answered."""

import json
import re
import resource
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import psutil
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from api.http import server as http_server
from api.http.server import HEAD_BYTES, HEAD_FIELDS, MOST_WAITING, limited_to
from benchmarks.harness.processes import WAIT_SECONDS, wait_until
from benchmarks.harness.servers import free_port
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.keys import Keys, NewKey
from replaceme_core.ledger.keys import Scope as KeyScope
from replaceme_core.ledger.migrate import upgrade
from tests.fixtures.service.serve import environment

GET = b"GET /health HTTP/1.1\r\nhost: localhost\r\n"


@dataclass(kw_only=True)
class Api:
    """The API as a process with few descriptors."""

    process: psutil.Process
    port: int
    log: Path

    def is_healthy(self) -> bool:
        with suppress(OSError):
            return talk(self.port, GET + b"connection: close\r\n\r\n").startswith(b"HTTP/1.1 200 ")
        return False

    def is_idle(self) -> bool:
        """Whether it has no connection of a client."""
        open_ones = self.process.net_connections(kind="tcp")
        return not [each for each in open_ones if each.raddr and each.laddr.port == self.port]

    def connect(self, sent: bytes, *, address: str = "127.0.0.1") -> socket.socket:
        """A connection from this address of the loopback network, with the beginning of a request."""
        connection = open_connection(self.port, address=address)
        connection.sendall(sent)
        return connection

    def assert_answers(self, key: str) -> None:
        """Others are served, who wait for nobody to leave: a probe without a key, and who has this key."""
        for path in ("/health", "/ready", "/jobs"):
            head = f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
            head += f"authorization: Bearer {key}\r\n" if path == "/jobs" else ""
            answer = talk(self.port, f"{head}\r\n".encode(), address="127.0.0.9")
            assert answer.startswith(b"HTTP/1.1 200 "), (path, answer)


def open_connection(port: int, *, address: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=WAIT_SECONDS, source_address=(address, 0))


def talk(port: int, sent: bytes, *, address: str = "127.0.0.1") -> bytes:
    """What the server answers until it closes the connection, or sends nothing more."""
    with open_connection(port, address=address) as connection:
        received = bytearray()
        with suppress(OSError):
            connection.sendall(sent)
            while chunk := connection.recv(65536):
                received += chunk
        return bytes(received)


@pytest.fixture(scope="module")
def many_descriptors() -> Iterator[None]:
    """Lets the clients, which are this process, open as many sockets as the system allows."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@contextmanager
def started(tmp_path: Path, **more: str) -> Iterator[Api]:
    """The API, which ends no connection for its age: a caller that is answered has not waited for that."""
    port, log = free_port(), tmp_path / "api.log"
    script = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))\n"
        "from api.http import server\n"
        "server.HEAD_SECONDS = 3600\n"
        f"sys.argv[1:] = ['--port', '{port}']\n"
        "sys.exit(server.main())\n"
    )
    settings = {"REPLACEME_DATA": str(tmp_path / "data"), "REPLACEME_HUB": f"dir:{tmp_path}", **more}
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", script], env=environment(**settings), stdout=output, stderr=output
        )
    found = Api(process=psutil.Process(process.pid), port=port, log=log)
    try:
        wait_until(lambda: process.poll() is not None or found.is_healthy(), what="start of the API")
        assert process.poll() is None, log.read_text()
        yield found
    finally:
        process.terminate()
        process.wait(timeout=WAIT_SECONDS)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, many_descriptors: None) -> Iterator[Api]:
    with started(tmp_path_factory.mktemp("api")) as api:
        yield api


@pytest.fixture(scope="module")
def shared_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """One with 20 connections, of which a caller may hold 10. Proxies are at 127.0.0.5."""
    place = tmp_path_factory.mktemp("small")
    url = f"sqlite:///{place / 'ledger.sqlite3'}"
    upgrade(url)
    with started(
        place, REPLACEME_DATABASE_URL=url, REPLACEME_MAX_CONNECTIONS="20", REPLACEME_TRUSTED_PROXIES="127.0.0.5"
    ) as api:
        yield api


@pytest.fixture
def small_api(shared_api: Api) -> Iterator[Api]:
    """That of all tests, which has no connections at the beginning."""
    yield shared_api
    wait_until(shared_api.is_idle, what="the end of all connections")


@pytest.fixture
def keys(shared_api: Api) -> list[str]:
    """The texts of three keys of different owners."""
    database = Database(f"sqlite:///{shared_api.log.with_name('ledger.sqlite3')}")
    with database.session() as session:
        made = [
            Keys(session)
            .create(NewKey(owner=owner, name="", scopes=frozenset({KeyScope.JOBS_READ, KeyScope.JOBS_WRITE})))
            .key
            for owner in ("ada", "bob", "cy")
        ]
    database.close()
    return made


def test_idle_connections_shut_nobody_out(api: Api) -> None:
    with ExitStack() as held:
        for _ in range(1100):
            held.enter_context(open_connection(api.port))
        assert api.is_healthy()
        assert api.process.num_fds() < 1024
    lines = [line for line in api.log.read_text().splitlines() if "a caller holds too many connections" in line]
    assert len(lines) == 1, "one line in a minute"
    assert api.is_healthy()


def test_headers_of_many_do_not_fill_the_memory(api: Api) -> None:
    """400 MB in all, of which the server reads little."""
    before = api.process.memory_info().rss
    peak = before
    payload = b"x: " + b"a" * 400_000
    with ExitStack() as held:
        for number in range(1000):
            client = held.enter_context(open_connection(api.port))
            client.setblocking(False)
            for part in (GET, payload if number % 2 else b"x: a\r\n" * (400_000 // 6)):
                with suppress(OSError):  # the server has closed it, or reads no more
                    client.send(part)
            if number % 50 == 0:
                peak = max(peak, api.process.memory_info().rss)
                assert api.is_healthy()
        peak = max(peak, api.process.memory_info().rss)
    assert peak - before < 100e6
    assert api.is_healthy()


def test_requests_that_nobody_waits_for_do_not_fill_the_memory(api: Api) -> None:
    """A client that sends 200,000 requests before it has its responses; uvicorn alone would parse them all first."""
    before = api.process.memory_info().rss
    with open_connection(api.port) as client, suppress(OSError):  # the server closes it
        for _ in range(100):
            client.sendall((GET + b"\r\n") * 2000)
    assert api.is_healthy()
    assert api.process.memory_info().rss - before < 20e6
    assert "Traceback" not in api.log.read_text()


def test_a_stream_ends_with_its_client_also_where_a_request_waits_behind_it(small_api: Api, keys: list[str]) -> None:
    """Uvicorn tells only the last request that the connection is gone."""
    with small_api.connect(events(keys[0]) + GET + b"\r\n") as client:
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
    wait_until(lambda: '"path": "/events"' in small_api.log.read_text(), what="the end of the stream")
    assert "Traceback" not in small_api.log.read_text()


def events(key: str) -> bytes:
    head = f"GET /events HTTP/1.1\r\nhost: localhost\r\naccept: text/event-stream\r\nauthorization: Bearer {key}\r\n"
    return f"{head}\r\n".encode()


def status_of(connection: socket.socket) -> int:
    """The status of a response that has begun."""
    found = re.match(rb"HTTP/1.1 (\d+) ", connection.recv(65536))
    assert found is not None
    return int(found[1])


def is_open(connection: socket.socket, *, seconds: float = 0) -> bool:
    """Whether the server leaves it open for this time: what it has sent is read first."""
    connection.settimeout(seconds)
    try:
        while connection.recv(65536):
            pass
    except (BlockingIOError, TimeoutError):
        return True
    except ConnectionError:
        pass
    return False


def test_streams_of_one_key_shut_nobody_out(small_api: Api, keys: list[str]) -> None:
    with ExitStack() as held:
        small_api.assert_answers(keys[0])  # looks the key up
        streams = [held.enter_context(small_api.connect(events(keys[0]))) for _ in range(30)]
        assert Counter(map(status_of, streams)) == {200: 10, 429: 20}
        refused = talk(small_api.port, events(keys[0]))
        assert b"retry-after: 5" in refused.lower()
        assert json.loads(refused.partition(b"\r\n\r\n")[2])["code"] == "too_many_requests"
        small_api.assert_answers(keys[1])
        assert sum(map(is_open, streams)) == 10, "nobody else needs the place of a stream"
        assert small_api.is_healthy()
    wait_until(lambda: ends_with_200(small_api, keys[0]), what="the end of the streams")


def ends_with_200(api: Api, key: str) -> bool:
    with api.connect(events(key)) as stream:
        return status_of(stream) == 200


def test_who_holds_most_makes_room(small_api: Api, keys: list[str]) -> None:
    with ExitStack() as held:
        small_api.assert_answers(keys[0])  # looks the key up
        streams = {}
        for key, count in zip(keys, (10, 6, 4), strict=True):
            streams[key] = [held.enter_context(small_api.connect(events(key))) for _ in range(count)]
            assert {status_of(each) for each in streams[key]} == {200}
        for _ in range(3):
            small_api.assert_answers(keys[1])
        lost = {key: sum(not is_open(each) for each in streams[key]) for key in keys}
        assert lost == {keys[0]: lost[keys[0]], keys[1]: 0, keys[2]: 0}
        assert lost[keys[0]] >= 1
        assert not is_open(streams[keys[0]][0]), "the oldest is the first"


@pytest.mark.parametrize(
    "begun",
    [
        b"POST /ui/sign-in HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/x-www-form-urlencoded\r\n"
        b"content-length: 100\r\n\r\nkey=",
        b"",
    ],
    ids=["body", "nothing"],
)
def test_half_requests_without_a_key_shut_nobody_out(small_api: Api, keys: list[str], begun: bytes) -> None:
    with ExitStack() as held:
        halves = [held.enter_context(small_api.connect(begun)) for _ in range(50)]
        small_api.assert_answers(keys[0])
        assert small_api.is_healthy(), "from the same address too"
        wait_until(lambda: sum(map(is_open, halves)) <= 10, what="the end of what is too much")
        assert is_open(halves[-1])
        for number in range(2, 5):  # other addresses, until all connections are in use
            halves += [held.enter_context(small_api.connect(begun, address=f"127.0.0.{number}")) for _ in range(10)]
            small_api.assert_answers(keys[0])


def test_half_a_request_that_has_to_go_gets_503(small_api: Api) -> None:
    with ExitStack() as held:
        begun = [held.enter_context(small_api.connect(GET)) for _ in range(11)]
        answer = b"".join(iter(lambda: begun[0].recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: " in answer.lower()
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "unavailable"
        begun[-1].sendall(b"\r\n")
        assert status_of(begun[-1]) == 200


def test_behind_a_proxy_each_client_is_a_caller(small_api: Api, keys: list[str]) -> None:
    """Not the proxy, which may hold all connections; and nobody else says for whom it asks."""

    def begun(client: str) -> bytes:
        head = f"POST /ui/sign-in HTTP/1.1\r\nhost: localhost\r\nx-forwarded-for: {client}\r\ncontent-length: 9\r\n"
        return f"{head}content-type: application/x-www-form-urlencoded\r\n\r\nkey=".encode()

    with ExitStack() as held:
        one = [held.enter_context(small_api.connect(begun("203.0.113.1"), address="127.0.0.5")) for _ in range(15)]
        wait_until(lambda: sum(map(is_open, one)) == 10, what="the end of what is too much")
        idle = [held.enter_context(small_api.connect(b"", address="127.0.0.5")) for _ in range(10)]
        assert all(map(is_open, idle)) and sum(map(is_open, one)) == 10
        small_api.assert_answers(keys[0])
    with ExitStack() as held:
        liar = [held.enter_context(small_api.connect(begun(f"203.0.113.{number}"))) for number in range(15)]
        wait_until(lambda: sum(map(is_open, liar)) == 10, what="the end of what is too much")


# The limits one by one, in this process


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the size of the body."""
    size = 0
    while True:
        message = await receive()
        size += len(message.get("body", b""))
        if not message.get("more_body", False):
            break
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"6")]})
    await send({"type": "http.response.body", "body": b"%6d" % size})


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    config = uvicorn.Config(
        echo, port=0, http=limited_to(50), ws="none", lifespan="off", log_level="critical", timeout_keep_alive=1
    )
    server = uvicorn.Server(config)
    thread = Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started, what="start of the server")
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(timeout=WAIT_SECONDS)


def send_slowly(connection: socket.socket, parts: list[bytes], *, pause: float) -> None:
    for part in parts:
        connection.sendall(part)
        time.sleep(pause)


def test_heads_up_to_the_limit_are_read(port: int) -> None:
    large = GET + b"x: " + b"a" * (HEAD_BYTES - 8192 - 200) + b"\r\nconnection: close\r\n\r\n"
    assert talk(port, large).startswith(b"HTTP/1.1 200 ")
    many = GET + b"x: a\r\n" * (HEAD_FIELDS - 2) + b"connection: close\r\n\r\n"
    assert talk(port, many).startswith(b"HTTP/1.1 200 ")
    body = b"".join(b"1\r\na\r\n" for _ in range(100_000)) + b"0\r\n\r\n"
    assert talk(port, b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n" + body).endswith(
        b"100000"
    )


def test_larger_heads_and_what_is_no_head_are_refused(port: int) -> None:
    for head in (
        GET + b"x: " + b"a" * 3 * HEAD_BYTES,
        b"GET /" + b"a" * 3 * HEAD_BYTES,
        GET + b"x: a\r\n" * (HEAD_FIELDS + 1) + b"\r\n",
        GET + b"".join(b"x%d: %s\r\n" % (n, b"a" * 1000) for n in range(50)),
    ):
        answer = talk(port, head)
        assert answer.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n"), answer
        assert b"application/problem+json" in answer
        assert b'"code":"headers_too_large"' in answer
    answer = talk(port, b"\x16\x03\x01\x02\x00\x01\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'"code":"bad_request"' in answer


def test_requests_behind_each_other_are_answered_up_to_the_limit(port: int) -> None:
    post = b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\n"
    last = post + b"connection: close\r\n\r\na"
    assert talk(port, (post + b"\r\na") * MOST_WAITING + last).count(b"HTTP/1.1 200 ") == MOST_WAITING + 1
    assert talk(port, (post + b"\r\na") * (MOST_WAITING + 1) + last) == b"", "no error in place of a response"


def test_trailers_without_end_are_cut_off(port: int) -> None:
    with open_connection(port) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx: ")
        with pytest.raises(ConnectionError):
            send_slowly(connection, [b"a" * 65536] * 1000, pause=0)


@pytest.mark.parametrize("begun", [b"", GET])
def test_a_head_that_does_not_come_ends_the_connection(
    port: int, monkeypatch: pytest.MonkeyPatch, begun: bytes
) -> None:
    monkeypatch.setattr(http_server, "HEAD_SECONDS", 0.3)
    with open_connection(port) as connection:
        connection.sendall(begun)
        assert not is_open(connection, seconds=WAIT_SECONDS)
    with open_connection(port) as connection:
        connection.sendall(GET + b"\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        connection.sendall(begun or b"\r\n")
        assert not is_open(connection, seconds=WAIT_SECONDS)


def test_a_head_byte_by_byte_ends_too(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "HEAD_SECONDS", 0.5)
    with open_connection(port) as connection, pytest.raises(ConnectionError):
        send_slowly(connection, [bytes([byte]) for byte in GET * 100], pause=0.02)
