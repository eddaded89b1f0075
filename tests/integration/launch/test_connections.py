"""Clients that hold connections, or send headers without end: the service answers others."""

import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import psutil
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from api.launch import connections
from api.launch.connections import HEAD_BYTES, HEAD_FIELDS, limited_to
from api.launch.http_server import most_connections
from benchmarks.harness.processes import wait_until
from benchmarks.harness.servers import free_port
from tests.fixtures.service.serve import environment

GET = b"GET /health HTTP/1.1\r\nhost: localhost\r\n"
SECONDS = 20.0


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


def talk(port: int, sent: bytes) -> bytes:
    """What the server answers until it closes the connection, or sends nothing more."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        received = bytearray()
        with suppress(OSError):
            connection.sendall(sent)
            while chunk := connection.recv(65536):
                received += chunk
        return bytes(received)


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Lets the clients, which are this process, open as many sockets as the system allows."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture
def api(tmp_path: Path, many_descriptors: None) -> Iterator[Api]:
    port, log = free_port(), tmp_path / "api.log"
    script = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))\n"
        "from api.launch.http_server import main\n"
        f"sys.argv[1:] = ['--port', '{port}']\n"
        "sys.exit(main())\n"
    )
    settings = {"REPLACEME_DATA": str(tmp_path / "data"), "REPLACEME_HUB": f"dir:{tmp_path}"}
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", script], env=environment(**settings), stdout=output, stderr=output
        )
    found = Api(process=psutil.Process(process.pid), port=port, log=log)
    try:
        wait_until(found.is_healthy, seconds=60, what=f"start of the API: {log.read_text()}")
        yield found
    finally:
        process.terminate()
        process.wait(timeout=30)


def test_idle_connections_shut_nobody_out(api: Api) -> None:
    with ExitStack() as held:
        for _ in range(1100):
            held.enter_context(socket.create_connection(("127.0.0.1", api.port), timeout=5))
        began = time.monotonic()
        assert api.is_healthy()
        assert time.monotonic() - began < 2
        assert api.process.num_fds() < 1024
    lines = [line for line in api.log.read_text().splitlines() if "the limit of connections is reached" in line]
    assert len(lines) == 1, "one line in a minute"
    assert api.is_healthy()


def test_headers_of_many_do_not_fill_the_memory(api: Api) -> None:
    """400 MB in all, of which the server reads little."""
    before = api.process.memory_info().rss
    peak = before
    payload = b"x: " + b"a" * 400_000
    with ExitStack() as held:
        for number in range(1000):
            client = held.enter_context(socket.create_connection(("127.0.0.1", api.port), timeout=5))
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


def test_connections_leave_descriptors_for_the_rest() -> None:
    assert most_connections(1000, 1024) == 768
    assert most_connections(1000, 65_536) == 1000
    assert most_connections(1000, 64) == 16


# The limits one by one, in this process


@contextmanager
def serving(app: Callable[[Scope, Receive, Send], object], *, most: int = 50) -> Iterator[int]:
    config = uvicorn.Config(
        app, port=0, http=limited_to(most), ws="none", lifespan="off", log_level="critical", timeout_keep_alive=1
    )
    server = uvicorn.Server(config)
    thread = Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started, seconds=SECONDS, what="start of the server")
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(timeout=SECONDS)


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


@pytest.fixture
def port() -> Iterator[int]:
    with serving(echo) as port:
        yield port


def send_slowly(connection: socket.socket, parts: list[bytes], *, pause: float) -> None:
    for part in parts:
        connection.sendall(part)
        time.sleep(pause)


def closes_within(connection: socket.socket, seconds: float) -> bool:
    connection.settimeout(seconds)
    try:
        while connection.recv(65536):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        return True
    return True


def test_heads_up_to_the_limit_are_read(port: int) -> None:
    large = GET + b"x: " + b"a" * (HEAD_BYTES - 8192 - 200) + b"\r\nconnection: close\r\n\r\n"
    assert talk(port, large).startswith(b"HTTP/1.1 200 ")
    many = GET + b"x: a\r\n" * (HEAD_FIELDS - 2) + b"connection: close\r\n\r\n"
    assert talk(port, many).startswith(b"HTTP/1.1 200 ")
    body = b"".join(b"1\r\na\r\n" for _ in range(100_000)) + b"0\r\n\r\n"
    assert talk(port, b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n" + body).endswith(
        b"100000"
    )


@pytest.mark.parametrize(
    "head",
    [
        GET + b"x: " + b"a" * 3 * HEAD_BYTES,
        GET + b"a" * 3 * HEAD_BYTES,
        b"GET /" + b"a" * 3 * HEAD_BYTES,
        GET + b"x: a\r\n" * (HEAD_FIELDS + 1) + b"\r\n",
        GET + b"".join(b"x%d: %s\r\n" % (n, b"a" * 1000) for n in range(50)),
    ],
    ids=["value", "name", "path", "lines", "bytes"],
)
def test_larger_heads_are_refused(port: int, head: bytes) -> None:
    answer = talk(port, head)
    assert answer.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n"), answer
    assert b"application/problem+json" in answer
    assert b'"code":"headers_too_large"' in answer


def test_what_is_not_http_is_a_problem(port: int) -> None:
    answer = talk(port, b"\x16\x03\x01\x02\x00\x01\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'"code":"bad_request"' in answer


def test_trailers_without_end_are_cut_off(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx: ")
        with pytest.raises(ConnectionError):
            send_slowly(connection, [b"a" * 65536] * 1000, pause=0)


@pytest.mark.parametrize("begun", [b"", b"GET / HT", GET, b"\r\n"])
def test_a_head_that_does_not_come_ends_the_connection(
    port: int, monkeypatch: pytest.MonkeyPatch, begun: bytes
) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.3)
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(begun)
        assert closes_within(connection, 3)
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(GET + b"\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        connection.sendall(begun or b"\r\n")
        assert closes_within(connection, 3)


def test_a_head_byte_by_byte_ends_too(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.5)
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection, pytest.raises(ConnectionError):
        send_slowly(connection, [bytes([byte]) for byte in GET * 100], pause=0.02)


def test_an_idle_connection_makes_room_and_a_busy_one_does_not() -> None:
    async def wait(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await echo(scope, receive, send)

    with serving(wait, most=2) as port, ExitStack() as held:
        busy = held.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5))
        busy.sendall(b"POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\na")
        time.sleep(0.3)
        idle = held.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5))
        second = held.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5))
        assert closes_within(idle, 3), "the older connection is busy, so the idle one went"
        second.sendall(b"POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\na")
        time.sleep(0.3)
        third = held.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5))
        assert closes_within(third, 3), "all others are busy"
        busy.sendall(b"b")
        assert busy.recv(65536).startswith(b"HTTP/1.1 200 ")
