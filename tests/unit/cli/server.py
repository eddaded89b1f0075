"""A server with canned answers, for what the real service cannot be made to say: garbage, silence, a broken proxy."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

JOB_ID = "3f2b8c52-0000-4000-8000-000000000001"


@dataclass(kw_only=True)
class Canned:
    """Answers by "METHOD /path"; each of a list is given once, the last one for ever."""

    answers: dict[str, list[tuple[int, object]]] = field(default_factory=dict)
    asked: list[tuple[str, object]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    """The `Idempotency-Key` of each request."""
    url: str = ""

    def take(self, request: str) -> tuple[int, object]:
        queue = self.answers.get(request.partition("?")[0])
        if not queue:
            return 404, {"title": "Not Found", "status": 404, "detail": f"no {request}", "code": "not_found"}
        return queue.pop(0) if len(queue) > 1 else queue[0]


@contextmanager
def canned_server(**answers: list[tuple[int, object]]) -> Iterator[Canned]:
    canned = Canned(answers=dict(answers))

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            request = f"{self.command} {self.path}"
            canned.keys.append(self.headers.get("idempotency-key"))
            canned.asked.append((request, json.loads(body) if body else None))
            status, content = canned.take(request)
            sent = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        do_GET = do_POST = answer

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        canned.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield canned
        finally:
            server.shutdown()
            thread.join()


def a_job(**fields: object) -> dict[str, object]:
    """A job as the service shows it."""
    return {
        "id": JOB_ID,
        "status": "queued",
        "stage": None,
        "progress": {"overall": 0.0, "stage": 0.0, "eta_seconds": None},
        "attempt": 0,
        "labels": {},
        "spec": {"model": {"repo_id": "acme/tiny", "revision": "a" * 40}, "ratio": 0.25},
        "created_at": "2026-11-25T00:00:00Z",
        "started_at": None,
        "finished_at": None,
        "error": None,
        "result": None,
        "links": {"self": f"/jobs/{JOB_ID}"},
        **fields,
    }


def an_event(seq: int, kind: str) -> dict[str, object]:
    return {"seq": seq, "type": kind, "at": "2026-11-25T00:00:00Z", "attempt": 1, "data": {}}


def a_problem(status: int, **fields: object) -> dict[str, object]:
    return {"type": "about:blank", "title": "T", "status": status, "detail": "what happened", "code": "c", **fields}
