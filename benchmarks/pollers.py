"""Many clients that poll `GET /jobs/{id}` while jobs arrive, against one API process: does it keep up.

    python -m benchmarks.pollers [--pollers 200] [--interval 1] [--arrivals 20] [--seconds 60]

Each poller asks for one queued job once a second over a connection of its own; meanwhile jobs are submitted at an even
rate. PostgreSQL, the Redis protocol and the Hub's protocol are real; there is no worker, so that the queue only grows.
The unloaded median is that of one client alone, before. A request's time runs from when it was due: one that had to
wait for the one before it counts that wait. All processes together have two processors.
"""

import argparse
import asyncio
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import psutil

from benchmarks.installation import installation, percentile
from tests.fixtures.processes import MODEL, Started

MOST_SECONDS = 0.25
MOST_TIMES = 10.0
UNLOADED_REQUESTS = 200
CORES = 2


@dataclass
class Seen:
    """Seconds by kind of request, and statuses."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    statuses: dict[str, Counter[int]] = field(default_factory=dict)

    def note(self, kind: str, seconds: float, status: int) -> None:
        self.seconds.setdefault(kind, []).append(seconds)
        self.statuses.setdefault(kind, Counter())[status] += 1


class Connection:
    """HTTP/1.1 over one connection, kept alive; so little of a client that it does not show in the figures."""

    def __init__(self, url: str) -> None:
        self._host = urlsplit(url).netloc
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(
        self, method: str, path: str, *, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers in lower case, body."""
        if self._writer is None:
            host, _, port = self._host.partition(":")
            self._reader, self._writer = await asyncio.open_connection(host, int(port))
        assert self._reader is not None
        sent = {"Host": self._host, **(headers or {})}
        if body:
            sent |= {"Content-Length": str(len(body)), "Content-Type": "application/json"}
        head = "".join(f"{name}: {value}\r\n" for name, value in sent.items())
        self._writer.write(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body)
        lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        answered = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        content = await self._reader.readexactly(int(answered.get("content-length", "0")))
        if answered.get("connection") == "close":
            self.close()
        return int(lines[0].split()[1]), answered, content

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None


async def submit(connection: Connection) -> tuple[int, str]:
    """The status, and the job's address."""
    body = {"model": MODEL, "ratio": 0.25, "calibration": "builtin:pydoc-topics"}
    status, headers, _ = await connection.ask("POST", "/jobs", body=json.dumps(body).encode())
    return status, headers.get("location", "")


async def poll(url: str, path: str, *, seen: Seen, kind: str, interval: float, until: float) -> None:
    connection, etag = Connection(url), None
    due = time.monotonic() + random.uniform(0, interval)
    while due < until:
        await asyncio.sleep(max(due - time.monotonic(), 0))
        headers = {"If-None-Match": etag} if etag else None
        status, answered, _ = await connection.ask("GET", path, headers=headers)
        seen.note(kind, time.monotonic() - due, status)
        etag = answered.get("etag", etag)
        due += interval
    connection.close()


async def arrive(url: str, *, rate: float, seen: Seen, until: float) -> None:
    """Submit at an even rate, each job over whichever connection is free."""
    free: list[Connection] = []
    tasks: set[asyncio.Task[None]] = set()

    async def one(due: float) -> None:
        connection = free.pop() if free else Connection(url)
        status, _ = await submit(connection)
        seen.note("POST /jobs", time.monotonic() - due, status)
        free.append(connection)

    due = time.monotonic()
    while rate and due < until:
        await asyncio.sleep(max(due - time.monotonic(), 0))
        task = asyncio.create_task(one(due))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        due += 1 / rate
    if tasks:
        await asyncio.gather(*tasks)
    for connection in free:
        connection.close()


async def measure(url: str, *, pollers: int, interval: float, arrivals: float, seconds: float) -> Seen:
    seen, first = Seen(), Connection(url)
    paths = [(await submit(first))[1] for _ in range(pollers)]
    for _ in range(UNLOADED_REQUESTS):
        began = time.monotonic()
        status, _, _ = await first.ask("GET", random.choice(paths))
        seen.note("GET /jobs/{id}, alone", time.monotonic() - began, status)
    first.close()
    until = time.monotonic() + seconds
    async with asyncio.TaskGroup() as group:
        group.create_task(arrive(url, rate=arrivals, seen=seen, until=until))
        for path in paths:
            group.create_task(poll(url, path, seen=seen, kind="GET /jobs/{id}", interval=interval, until=until))
    return seen


def report(seen: Seen, *, api: Started, seconds: float, before: float) -> bool:
    """Print the table; whether all is as it should be."""
    spent = psutil.Process(api.pid).cpu_times()
    print("| request | number | 5xx | p50 | p95 | p99 | slowest |")
    print("|---|---|---|---|---|---|---|")
    for kind, each in seen.seconds.items():
        failed = sum(count for status, count in seen.statuses[kind].items() if status >= 500)
        parts = " | ".join(f"{percentile(each, part) * 1e3:.1f} ms" for part in (0.5, 0.95, 0.99, 1.0))
        print(f"| `{kind}` | {len(each)} | {failed} | {parts} |")
    alone, p99 = (
        percentile(seen.seconds["GET /jobs/{id}, alone"], 0.5),
        percentile(seen.seconds["GET /jobs/{id}"], 0.99),
    )
    statuses = sum(seen.statuses.values(), Counter())
    good = p99 <= MOST_SECONDS and p99 <= MOST_TIMES * alone and not any(status >= 400 for status in statuses)
    cores = (spent.user + spent.system - before) / seconds
    print(f"\np99 {p99 * 1e3:.1f} ms; at most {MOST_SECONDS * 1e3:.0f} ms is wanted")
    print(f"it is {p99 / alone:.1f} times the median of one client alone; at most {MOST_TIMES:.0f} times is wanted")
    print(f"statuses {dict(statuses)}; the API process used {cores:.2f} processors")
    return good


def share_processors() -> None:
    """This process, and all that it starts, on two processors."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:CORES]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pollers", type=int, default=200)
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between two requests of one poller")
    parser.add_argument("--arrivals", type=float, default=20.0, help="jobs a second")
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    share_processors()
    with installation(embedded=False, settings={}) as (site, _):
        api = site.start_api(options=("--no-access-log",))  # as `replaceme serve` starts it
        assert api.url is not None
        spent = psutil.Process(api.pid).cpu_times()
        seen = asyncio.run(
            measure(
                api.url,
                pollers=options.pollers,
                interval=options.interval,
                arrivals=options.arrivals,
                seconds=options.seconds,
            )
        )
        good = report(seen, api=api, seconds=options.seconds, before=spent.user + spent.system)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
