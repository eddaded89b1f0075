"""What is sent over the wire, to receivers that mean well and to those that do not."""

import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from replaceme_core.webhooks import Outcome, Resolve, Sender, TargetRules
from tests.fixtures.webhooks.certificates import contexts_for
from tests.fixtures.webhooks.receiver import receiver

HERE = TargetRules(allow_http=True, networks=(ipaddress.ip_network("127.0.0.0/8"),))
SECONDS = 2.0
BODY = '{"n":1}'


def send(
    url: str,
    *,
    rules: TargetRules = HERE,
    resolve: Resolve = lambda host, port: ["127.0.0.1"],
    ssl_context: ssl.SSLContext | None = None,
    seconds: float = SECONDS,
    body: str = BODY,
) -> Outcome:
    sender = Sender(rules=rules, seconds=seconds, resolve=resolve, ssl_context=ssl_context)
    began = time.monotonic()
    outcome = sender.send(url, body=body, headers={"webhook-id": "evt_x-1"})
    assert time.monotonic() - began < 2 * seconds + 2
    return outcome


def test_it_is_sent_as_a_post_with_the_name_as_host() -> None:
    with receiver() as there:
        outcome = send(f"http://hooks.example.com:{there.port}/a?b=c")
        (request,) = there.received
    assert outcome.is_delivered
    assert (outcome.status, outcome.error) == (204, None)
    assert (request.path, request.body) == ("/a?b=c", BODY.encode())
    assert request.headers["host"] == f"hooks.example.com:{there.port}"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["webhook-id"] == "evt_x-1"


def test_a_name_that_changes_its_address_gains_nothing() -> None:
    """The checked address is the one connected to: a second look-up would find another one, and there is none."""
    answers = [["127.0.0.1"], ["127.0.0.2"]]

    def rebind(_: str, __: int) -> Sequence[str]:
        return answers.pop(0)

    with receiver() as there:
        assert send(f"http://hooks.example.com:{there.port}/", resolve=rebind).is_delivered
    assert answers == [["127.0.0.2"]], "the name was looked up once"
    only = TargetRules(allow_http=True, networks=(ipaddress.ip_network("127.0.0.1/32"),))
    with receiver() as there:
        outcome = send(f"http://hooks.example.com:{there.port}/", rules=only, resolve=lambda *_: ["127.0.0.2"])
        assert outcome.error == "address_refused"
        assert there.received == []


def test_nothing_goes_to_this_machine_by_default() -> None:
    with receiver() as there:
        strict = TargetRules(allow_http=True)
        for host in ("127.0.0.1", "localhost", "hooks.example.com", "[::ffff:127.0.0.1]"):
            outcome = send(f"http://{host}:{there.port}/", rules=strict)
            assert outcome.error == "address_refused"
        assert send(f"http://2130706433:{there.port}/", rules=strict).error == "url_refused"
        assert send(f"http://127.0.0.1:{there.port}/", rules=TargetRules()).error == "url_refused"
        assert there.received == []


def test_the_certificate_and_the_name_in_tls_are_those_of_the_host(tmp_path: Path) -> None:
    server, client = contexts_for("hooks.example.com", tmp_path)
    with receiver(tls=server) as there:
        assert send(f"https://hooks.example.com:{there.port}/", ssl_context=client).is_delivered
        assert there.server_names == ["hooks.example.com"]
        assert there.received[0].headers["host"] == f"hooks.example.com:{there.port}"
        for url in (f"https://other.example.com:{there.port}/", f"https://127.0.0.1:{there.port}/"):
            assert send(url, ssl_context=client).error == "tls_failed"
        assert send(f"https://hooks.example.com:{there.port}/").error == "tls_failed", "not a trusted authority"
        assert len(there.received) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(status: int) -> None:
    with receiver() as there:
        there.status = status
        there.headers = {"location": f"http://127.0.0.1:{there.port}/elsewhere"}
        outcome = send(there.url)
        assert (outcome.status, outcome.error) == (status, "redirect")
        assert len(there.received) == 1


@pytest.mark.parametrize(
    ("status", "headers", "retry_after"),
    [(500, {}, None), (404, {}, None), (429, {"Retry-After": "120"}, 120.0), (503, {"Retry-After": "soon"}, None)],
)
def test_another_status_is_a_failure(status: int, headers: dict[str, str], retry_after: float | None) -> None:
    with receiver() as there:
        there.status, there.headers = status, headers
        outcome = send(there.url)
    assert (outcome.status, outcome.error, outcome.retry_after) == (status, "status", retry_after)
    assert not outcome.is_gone


def test_410_says_that_nothing_more_is_wanted() -> None:
    with receiver() as there:
        there.status = 410
        assert send(there.url).is_gone


def test_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with receiver() as proxy, receiver() as there:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert send(there.url).is_delivered
        assert proxy.received == []


def test_the_next_address_is_tried_if_one_does_not_accept() -> None:
    with receiver() as there:
        url = f"http://hooks.example.com:{there.port}/"
        assert send(url, resolve=lambda *_: ["127.0.0.9", "127.0.0.1"]).is_delivered


def test_a_port_where_nobody_listens() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        assert send(f"http://127.0.0.1:{unused.getsockname()[1]}/").error == "not_connected"


def drip_headers(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        connection.sendall(b"x: y\r\n")
        time.sleep(0.05)


def endless_informational(connection: socket.socket) -> None:
    while True:
        connection.sendall(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        time.sleep(0.01)


def huge_header(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nx: ")
    while True:
        connection.sendall(b"y" * 65536)


def silence(connection: socket.socket) -> None:
    time.sleep(2 * SECONDS)


def garbage(connection: socket.socket) -> None:
    connection.sendall(b"SSH-2.0-OpenSSH_9.9\r\n" * 10)


def nothing(connection: socket.socket) -> None:
    connection.recv(65536)


@contextmanager
def raw_server(talk: object) -> Iterator[int]:
    """A server that reads nothing and does what `talk` does with each connection."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        stopped = threading.Event()

        def serve() -> None:
            while not stopped.is_set():
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    try:
                        talk(connection)  # type: ignore[operator]
                    except OSError:
                        continue

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield int(listening.getsockname()[1])
        finally:
            stopped.set()
            listening.shutdown(socket.SHUT_RDWR)
            thread.join(timeout=5)


@pytest.mark.parametrize(
    ("talk", "error"),
    [
        (drip_headers, "timeout"),
        (endless_informational, "timeout"),
        (huge_header, "connection_lost"),
        (silence, "timeout"),
        (garbage, "connection_lost"),
        (nothing, "connection_lost"),
    ],
)
def test_a_receiver_that_misbehaves_is_left_in_time(talk: object, error: str) -> None:
    with raw_server(talk) as port:
        assert send(f"http://127.0.0.1:{port}/", seconds=1.0).error == error


def test_an_endless_body_is_not_read_to_its_end() -> None:
    written = 0

    def endless(handler: BaseHTTPRequestHandler) -> None:
        nonlocal written
        handler.send_response(200)
        handler.end_headers()
        while True:
            written += handler.wfile.write(b"x" * 65536)

    with receiver() as there:
        there.answer = endless
        outcome = send(there.url)
        assert outcome.is_delivered, "the status is known, and the rest is not wanted"
    assert written < 64 * 1024 * 1024


def test_a_large_body_to_a_receiver_that_does_not_read_ends_in_time() -> None:
    with raw_server(silence) as port:
        outcome = send(f"http://127.0.0.1:{port}/", body="x" * 20_000_000, seconds=1.0)
    assert outcome.error in ("timeout", "connection_lost")
