"""A dashboard of all your jobs: one list that is asked for again with its entity tag, and one stream.

    python dashboard.py [--every 30]

`REPLACEME_URL` is the service, `REPLACEME_API_KEY` a key with the scope `jobs:read`. The stream says what happens; the
list, every 30 seconds, has what it does not, such as progress. A list that has not changed is a 304 without a body.
Needs replaceme without extras (docs/reference/command-line.md).
"""

import argparse
import os
import threading
import time
from contextlib import suppress

import httpx2

from api.client.client import Client
from api.client.errors import Missing, ServiceUnreachable

SHOWN = "id,status,stage,progress,labels,created_at"


def show(line: str) -> None:
    """Print a line at once and whole: two threads do."""
    print(f"{line}\n", end="", flush=True)


def show_list(http: httpx2.Client, tag: str) -> str:
    """Ask for the list again, and return its tag. gzip makes 500 jobs less than 100 kB."""
    known = {"If-None-Match": tag} if tag else {}
    answer = http.get("/jobs", params={"limit": 500, "fields": SHOWN}, headers=known)
    if answer.status_code == httpx2.codes.NOT_MODIFIED:
        show("unchanged")
        return tag
    jobs = answer.raise_for_status().json()["items"]
    show(f"{len(jobs)} jobs, {sum(job['status'] == 'running' for job in jobs)} running")
    return str(answer.headers["etag"])


def follow(client: Client) -> None:
    """Show each event as it happens; resumes where the connection is lost."""
    for event in client.stream():
        assert event.job_id is not None
        with suppress(Missing, ServiceUnreachable):  # deleted meanwhile, or the service is restarted
            show(f"{event.type}: {event.job_id} is {client.job(event.job_id).status}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--every", type=float, default=30, help="seconds between two lists")
    every = parser.parse_args().every
    url, key = os.environ["REPLACEME_URL"], os.environ.get("REPLACEME_API_KEY")
    http = httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {key}"} if key else {})
    threading.Thread(target=follow, args=(Client(url, api_key=key),), daemon=True).start()
    tag = ""
    while True:
        try:
            tag = show_list(http, tag)
        except httpx2.TransportError as error:  # it is restarted, for one
            show(f"no answer: {error}")
        time.sleep(every)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
