"""A small Hub with the HTTP protocol of the real one, for use with the real client.

In a test: `with FakeHub(tmp_path) as hub:`. As a process:

    python -m benchmarks.harness.fake_hub.server --port 0 --root DIR

prints its address and serves the repositories `DIR/ORG/NAME/` and `DIR/datasets/ORG/NAME/`. `POST /-/faults` with the
fields of `Rule` adds a fault, and `GET /-/requests?method=M&path=REGEX` returns how many requests matched.
"""

import argparse
import re
import signal
import socket
import ssl
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from benchmarks.harness.fake_hub.access import ANONYMOUS, caller_of
from benchmarks.harness.fake_hub.faults import Fault, Faults, Rule, falsified, inflated, rewritten
from benchmarks.harness.fake_hub.messages import Reply, Request, as_json, refusal
from benchmarks.harness.fake_hub.routes import dispatch
from benchmarks.harness.fake_hub.store import Commit, Missing, Rejected, Store

CHUNK = 64 * 1024  # bytes


@dataclass(frozen=True)
class Seen:
    """A request that arrived."""

    method: str
    path: str
    authorization: str | None
    range: str | None


class FakeHub:
    """A Hub served by threads of this process, with its files under `root`. `stop` closes every connection.

    It answers over HTTPS where it has a certificate (`tls`).
    """

    def __init__(self, root: Path, *, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self.store = Store(root)
        self.faults = Faults()
        self.seen: list[Seen] = []
        self.stopping = threading.Event()
        self._server = _Server(("127.0.0.1", port), _Handler)
        self._scheme = "http" if tls is None else "https"
        if tls is not None:
            # each connection is negotiated in its own thread
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self._server.hub = self
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self._server.server_port}"

    @property
    def storage_url(self) -> str:
        return f"{self._scheme}://localhost:{self._server.server_port}"

    def start(self) -> Self:
        self._thread.start()
        return self

    def stop(self) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._server.close_connections()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def add_model(self, repo_id: str, files: Mapping[str, bytes] | Path, *, private: bool = False) -> Commit:
        return self.store.seed("model", repo_id, files, private=private)

    def add_dataset(self, repo_id: str, files: Mapping[str, bytes] | Path, *, private: bool = False) -> Commit:
        return self.store.seed("dataset", repo_id, files, private=private)

    def commits(self, repo_id: str, *, kind: str = "model") -> list[Commit]:
        """Oldest first; the first is the one that the Hub itself makes for a new repository."""
        return list(self.store.repository(kind, repo_id).commits)

    def content(self, repo_id: str, path: str, *, kind: str = "model") -> bytes:
        _, blob = self.store.repository(kind, repo_id).file("main", path)
        return self.store.object(blob.sha256).read_bytes()

    def fail(
        self, fault: Fault, path: str = "", *, method: str | None = None, value: float = 0, times: int = 1
    ) -> Rule:
        rule = Rule(fault, path, method, value, times)
        self.faults.add(rule)
        return rule

    def count(self, method: str | None = None, path: str = "") -> int:
        """How many requests have arrived with this method and a path that the regular expression `path` matches."""
        return sum(method in (None, seen.method) and bool(re.search(path, seen.path)) for seen in list(self.seen))

    def answer(self, request: Request) -> Reply:
        """The reply to a request; errors have the form of the real Hub's errors."""
        try:
            if request.path == "/-/faults":
                self.faults.add(_rule(request.json()))
                return as_json({})
            if request.path == "/-/requests":
                method, path = request.query.get("method", [None])[0], request.query.get("path", [""])[0]
                return as_json({"count": self.count(method, path)})
            return dispatch(self.store, request)
        except Missing as error:
            if error.code == "RepoNotFound" and request.caller.user is None:
                return refusal(401, "Invalid username or password.")  # does not reveal whether the repository exists
            status = 403 if error.code == "GatedRepo" else 404
            return refusal(status, str(error), error.code)
        except Rejected as error:
            return refusal(error.status, str(error))


def _rule(fields: dict[str, Any]) -> Rule:
    return Rule(**{**fields, "fault": Fault(fields["fault"])})


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: FakeHub

    def __init__(self, *args: Any) -> None:
        self._connections: set[socket.socket] = set()
        super().__init__(*args)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self._connections.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def close_connections(self) -> None:
        for connection in list(self._connections):
            self.shutdown_request(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing: broken connections are intended."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # otherwise a body waits 40 ms until the client has acknowledged the headers
    server: _Server

    def _serve(self) -> None:
        hub, url = self.server.hub, urlsplit(self.path)
        upload = hub.store.new_path() if self.command == "PUT" else None
        body = self._body(upload)
        if not url.path.startswith("/-/"):
            hub.seen.append(Seen(self.command, url.path, self.headers["Authorization"], self.headers["Range"]))
        rule = hub.faults.take(self.command, url.path)
        if rule is not None:
            if rule.fault is Fault.DROP:
                return self._hang_up()
            if rule.fault is Fault.STATUS:
                return self._reply(refusal(int(rule.value), "a fault that the test asked for"))
            if rule.fault in (Fault.LIMIT, Fault.AWAY):
                status, why = (429, "too many requests") if rule.fault is Fault.LIMIT else (503, "maintenance")
                return self._reply(refusal(status, why, headers={"Retry-After": str(int(rule.value))}))
            if rule.fault is Fault.DELAY:
                hub.stopping.wait(rule.value)
            if rule.fault is Fault.HOLD:
                rule.hold(hub.stopping)
                if rule.forgotten or hub.stopping.is_set():
                    return self._hang_up()
        try:
            caller = caller_of(self.headers["Authorization"])
        except Rejected as error:
            return self._reply(refusal(error.status, str(error)))
        query = parse_qs(url.query, keep_blank_values=True)
        headers = dict(self.headers.items())
        if "/storage/" in url.path or url.path.startswith("/upload/"):
            caller = ANONYMOUS
        request = Request(self.command, url.path, query, headers, body, caller, hub.url, hub.storage_url)
        reply = hub.answer(request)
        if rule is not None and rule.fault is Fault.HOLD_REPLY:
            rule.hold(hub.stopping)
        if rule is not None and rule.fault is Fault.LOSE_REPLY:
            return self._hang_up()
        if rule is not None and rule.fault is Fault.SPOIL_REPLY:
            reply = refusal(int(rule.value), "a fault that the test asked for")
        if rule is not None and rule.fault in (Fault.WRONG_ETAG, Fault.CORRUPT):
            reply = falsified(reply, rule.fault)
        if rule is not None and rule.fault is Fault.INFLATE:
            reply = inflated(reply, int(rule.value))
        if rule is not None and rule.fault is Fault.REWRITE:
            reply = rewritten(reply, rule.change)
        if rule is not None and rule.fault is Fault.DRIP:
            return self._drip(reply, rule.value)
        cut = int(rule.value) if rule is not None and rule.fault in (Fault.TRUNCATE, Fault.RESET) else None
        return self._reply(reply, cut=cut, reset=rule is not None and rule.fault is Fault.RESET)

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    def _body(self, upload: Path | None) -> bytes | Path:
        if upload is None:
            return b"".join(self._body_chunks())
        with upload.open("wb") as stream:
            for chunk in self._body_chunks():
                stream.write(chunk)
        return upload

    def _body_chunks(self) -> Any:
        if self.headers["Transfer-Encoding"] == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers["Content-Length"] or 0)
        while left > 0:
            chunk = self.rfile.read(min(left, CHUNK))
            if not chunk:
                raise ConnectionError("the client disconnected")
            left -= len(chunk)
            yield chunk

    def _reply(self, reply: Reply, *, cut: int | None = None, reset: bool = False) -> None:
        size = reply.body.stat().st_size if isinstance(reply.body, Path) else len(reply.body)
        start, end, status, headers = 0, size, reply.status, dict(reply.headers)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"] or "")
        if wanted and status == 200:
            start, status = int(wanted[1]), 206
            if start >= size:
                return self._reply(refusal(416, "Range Not Satisfiable"))
            end = min(size, int(wanted[2]) + 1) if wanted[2] else size
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(end - start)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self._send(reply.body, start=start, length=min(end - start, cut if cut is not None else size))
        if reset:
            self.server.hub.stopping.wait(0.5)  # what has arrived is read
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()  # and so do the files that were made of it
            self.close_connection = True
        elif cut is not None:
            self._hang_up()
        return None

    def _drip(self, reply: Reply, seconds: float) -> None:
        body = reply.body.read_bytes() if isinstance(reply.body, Path) else reply.body
        self.send_response(reply.status)
        for name, value in {**reply.headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        for byte in body:
            if self.server.hub.stopping.wait(seconds):
                return self._hang_up()
            self.wfile.write(bytes([byte]))
        return None

    def _send(self, body: bytes | Path, *, start: int, length: int) -> None:
        if isinstance(body, bytes):
            self.wfile.write(body[start : start + length])
            return
        with body.open("rb") as stream:
            stream.seek(start)
            while length > 0 and (chunk := stream.read(min(CHUNK, length))):
                self.wfile.write(chunk)
                length -= len(chunk)

    def _hang_up(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing: tests read `count`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--root", type=Path, required=True)
    arguments = parser.parse_args()
    hub = FakeHub(arguments.root, port=arguments.port)
    hub.store.seed_all(arguments.root)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    with hub:
        print(hub.url, flush=True)  # the address is this program's output
        ended.wait()


if __name__ == "__main__":
    main()
