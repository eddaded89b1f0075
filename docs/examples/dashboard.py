"""A dashboard of all your jobs: one list that is asked for again with its entity tag, and one stream.

    python dashboard.py [--every 30] [--seconds 0]

`REPLACEME_URL` is the service, `REPLACEME_API_KEY` a key with the scope `jobs:read`. The stream says what happens; the
list, every 30 seconds, has what it does not, such as progress. A list that has not changed is a 304 without a body.
Needs replaceme without extras (docs/reference/command-line.md).
"""

import argparse
import asyncio
import os
from contextlib import suppress
from typing import Any

import httpx2

from api.client.async_client import AsyncClient
from api.client.errors import Missing

SHOWN = "id,status,stage,progress,labels,created_at"


class Board:
    """The jobs by id, and the tag of the list that they come from."""

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.tag = ""

    async def refresh(self, http: httpx2.AsyncClient) -> None:
        """Ask for the list again. gzip makes 500 jobs less than 100 kB."""
        known = {"If-None-Match": self.tag} if self.tag else {}
        answer = await http.get("/jobs", params={"limit": 500, "fields": SHOWN}, headers=known)
        if answer.status_code == httpx2.codes.NOT_MODIFIED:
            print("unchanged")
            return
        answer.raise_for_status()
        self.tag = answer.headers["etag"]
        self.jobs = {job["id"]: job for job in answer.json()["items"]}
        running = sum(job["status"] == "running" for job in self.jobs.values())
        print(f"{len(self.jobs)} jobs, {running} running")

    async def follow(self, client: AsyncClient) -> None:
        """Show each event as it happens; resumes where the connection is lost."""
        async for event in client.stream():
            assert event.job_id is not None
            with suppress(Missing):  # deleted meanwhile
                job = await client.job(event.job_id)
                self.jobs[job.id] = {"id": job.id, "status": job.status, "stage": job.stage}
                print(f"{event.type}: {job.id} is {job.status}")


async def show(*, url: str, key: str | None, every: float) -> None:
    board = Board()
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with (
        AsyncClient(url, api_key=key) as client,
        httpx2.AsyncClient(base_url=url, headers=headers) as http,
        asyncio.TaskGroup() as tasks,
    ):
        tasks.create_task(board.follow(client))
        while True:
            await board.refresh(http)
            await asyncio.sleep(every)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--every", type=float, default=30, help="seconds between two lists")
    parser.add_argument("--seconds", type=float, default=0, help="how long to run; 0: until it is interrupted")
    options = parser.parse_args()
    shown = show(url=os.environ["REPLACEME_URL"], key=os.environ.get("REPLACEME_API_KEY"), every=options.every)
    with suppress(TimeoutError, KeyboardInterrupt):
        asyncio.run(asyncio.wait_for(shown, options.seconds or None))


if __name__ == "__main__":
    main()
