"""A dashboard of all your jobs: one list that is asked for again with its entity tag, and one stream.

    python dashboard.py [--every 30] [--seconds 0]

`REPLACEME_URL` is the service, `REPLACEME_API_KEY` a key with the scope `jobs:read`. The stream says what happens; the
list, every 30 seconds, has what it does not, such as progress. A list that has not changed is a 304 without a body.
Needs replaceme without extras (docs/reference/command-line.md).
"""

import argparse
import os
import threading
import time
from contextlib import suppress
from typing import Any

import httpx2

from api.client.client import Client
from api.client.errors import Missing

SHOWN = "id,status,stage,progress,labels,created_at"


class Board:
    """The jobs by id, and the tag of the list that they come from."""

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.tag = ""

    def refresh(self, http: httpx2.Client) -> None:
        """Ask for the list again. gzip makes 500 jobs less than 100 kB."""
        known = {"If-None-Match": self.tag} if self.tag else {}
        answer = http.get("/jobs", params={"limit": 500, "fields": SHOWN}, headers=known)
        if answer.status_code == httpx2.codes.NOT_MODIFIED:
            print("unchanged")
            return
        answer.raise_for_status()
        self.tag = answer.headers["etag"]
        self.jobs = {job["id"]: job for job in answer.json()["items"]}
        running = sum(job["status"] == "running" for job in self.jobs.values())
        print(f"{len(self.jobs)} jobs, {running} running")

    def follow(self, client: Client) -> None:
        """Show each event as it happens; resumes where the connection is lost."""
        for event in client.stream():
            assert event.job_id is not None
            with suppress(Missing):  # deleted meanwhile
                job = client.job(event.job_id)
                self.jobs[job.id] = {"id": job.id, "status": job.status, "stage": job.stage}
                print(f"{event.type}: {job.id} is {job.status}")


def show(*, url: str, key: str | None, every: float, seconds: float) -> None:
    board, began = Board(), time.monotonic()
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    client, http = Client(url, api_key=key), httpx2.Client(base_url=url, headers=headers)
    threading.Thread(target=board.follow, args=(client,), daemon=True).start()
    while not seconds or time.monotonic() - began < seconds:
        board.refresh(http)
        time.sleep(every)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--every", type=float, default=30, help="seconds between two lists")
    parser.add_argument("--seconds", type=float, default=0, help="how long to run; 0: until it is interrupted")
    options = parser.parse_args()
    url, key = os.environ["REPLACEME_URL"], os.environ.get("REPLACEME_API_KEY")
    with suppress(KeyboardInterrupt):
        show(url=url, key=key, every=options.every, seconds=options.seconds)


if __name__ == "__main__":
    main()
