"""A tool that orders a smaller model, and goes on when the service calls it back.

    python mlops_tool.py --model org/name --receive http://HOST:PORT/replaceme [--port PORT] [--label NAME=VALUE]

`REPLACEME_URL` is the service, and `REPLACEME_API_KEY` a key that may create keys (scope `admin`). The exit status is 0
if there is a result, else 1. Needs replaceme without extras (docs/reference/command-line.md).
"""

import argparse
import os
import queue
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import uuid4

from standardwebhooks import Webhook, WebhookVerificationError

from api.client.client import Client
from api.client.errors import Invalid
from api.client.models import Job

SCOPES = ["jobs:read", "jobs:write", "webhooks:write"]
TRIES = 2

Messages = queue.Queue[dict[str, Any]]


@contextmanager
def receiver(port: int, secrets: list[str]) -> Iterator[Messages]:
    """Puts each message that is signed with the last of `secrets` into a queue, once."""
    messages: Messages = queue.Queue()
    seen: set[str] = set()  # a real tool keeps them in its database

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            try:
                message = Webhook(secrets[-1]).verify(body, headers)
            except (IndexError, WebhookVerificationError):  # nobody has signed it, or somebody else
                self.send_response(401)
            else:
                if headers["webhook-id"] not in seen:
                    seen.add(headers["webhook-id"])
                    messages.put(message)
                self.send_response(204)
            self.end_headers()

    with ThreadingHTTPServer(("", port), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield messages
        server.shutdown()


def wait_for_message(messages: Messages, job: Job) -> None:
    """Returns once the service has called about the end of this job. Others are of earlier tries."""
    called = None
    while called != job.id:
        message = messages.get(timeout=6 * 3600)
        called = message["data"]["job_id"]
        print(f"called: {message['type']} {called}")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--receive", required=True, help="URL of this tool as the service reaches it")
    parser.add_argument("--port", type=int, default=8080, help="port to listen on")
    parser.add_argument("--label", action="append", default=[], metavar="NAME=VALUE")
    options = parser.parse_args()
    url = os.environ["REPLACEME_URL"]
    labels = dict(label.split("=", 1) for label in options.label)
    request = {"model": options.model, "ratio": 0.25, "calibration": "builtin:pydoc-topics", "labels": labels}

    with Client(url) as admin:  # once, when the tool is set up
        key = admin.keys.create({"name": "mlops", "scopes": SCOPES}).key

    secrets: list[str] = []
    with Client(url, api_key=key) as client, receiver(options.port, secrets) as messages:
        # for all jobs, not for one: it also calls about retries
        hook = client.webhooks.create(options.receive)
        assert hook.secret is not None
        secrets.append(hook.secret)
        try:
            return order(client, request, messages)
        finally:
            client.webhooks.delete(hook.id)


def order(client: Client, request: dict[str, object], messages: Messages) -> int:
    """Plan, submit, wait for the call, and try again once."""
    try:
        plan = client.plan(request)
        if plan.estimate is not None:
            time = plan.estimate.time
            expected = f"{time.low_seconds:.0f} to {time.high_seconds:.0f} s"
            print(f"planned: {plan.estimate.blocks.removed} blocks, {expected}")
        job = client.submit(request, idempotency_key=uuid4().hex)
    except Invalid as error:
        print(f"refused: {error}")
        return 1
    for number in range(TRIES):
        print(f"submitted: {job.id}")
        wait_for_message(messages, job)
        job = client.job(job.id)
        if job.result is not None:
            report = client.report(job.id)
            print(f"result: {job.result.repo_id} without the blocks {report['removed_blocks']}")
            return 0
        print(f"{job.status}: {job.error.message if job.error else ''}")
        if number + 1 < TRIES:
            job = client.retry(job.id, idempotency_key=f"{job.id}-again")
    return 1


if __name__ == "__main__":
    sys.exit(main())
