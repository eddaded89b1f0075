"""Latency of `GET /jobs/{id}` in one API process while many clients poll and jobs arrive, and the size of a long list.

    python -m benchmarks.polling [--pollers 200] [--interval 1] [--arrivals 20] [--seconds 60]

Each poller requests one queued job once a second over its own connection, with the entity tag that it has seen, while
jobs are submitted at a constant rate. PostgreSQL, the Redis protocol and the Hub's protocol are real. There is no
worker, so the queue only grows. All processes, the clients included, share two processors.

The unloaded latency is measured first: the same pollers send one request at a time over the same connections, and
nothing else happens. The latency of a request is measured from the time when it was due, so it includes waiting for the
previous request, and the lag of the clients themselves. That lag is printed separately and not subtracted. At the end a
dashboard asks for 500 jobs at once, compressed. The exit status is 1 if a limit is exceeded or a request fails.
"""

import argparse
import asyncio
import gc
import gzip
import json
import os
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import uvloop

from benchmarks.connection import Connection
from benchmarks.harness.installation import installation
from benchmarks.harness.site import MODEL
from benchmarks.percentile import percentile

MOST_ABOVE_SECONDS = 0.025
LISTED_JOBS = 500
MOST_LIST_BYTES = 100_000  # compressed
FEWEST_UNCHANGED = 0.5  # of the answers to pollers
UNLOADED_ROUNDS = 5
CORES = 2

ALONE, POLL, SUBMIT = "GET /jobs/{id}, one at a time", "GET /jobs/{id}", "POST /jobs"
NO_ANSWER = 0


@dataclass
class Seen:
    """Latencies in seconds and statuses by kind of request, and the lag of the clients."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    statuses: dict[str, Counter[int]] = field(default_factory=dict)
    lags: list[float] = field(default_factory=list)
    reopened: int = 0
    api_seconds: float = 0.0
    api_waited: float | None = None
    """Seconds, summed over threads, for which a thread of the API was ready to run but had no processor."""
    client_seconds: float = 0.0
    list_bytes: int = 0
    list_seconds: float = 0.0

    def note(self, kind: str, seconds: float, status: int) -> None:
        self.seconds.setdefault(kind, []).append(seconds)
        self.statuses.setdefault(kind, Counter())[status] += 1

    async def wait_until(self, due: float) -> None:
        """Sleep until `due`, if that is not over yet."""
        left = due - time.monotonic()
        if left > 0:
            await asyncio.sleep(left)
            self.lags.append(time.monotonic() - due)


class Poller:
    """A client that requests one job over one connection."""

    def __init__(self, url: str, path: str) -> None:
        self._path = path
        self._tag = ""
        self.connection = Connection(url)

    async def ask(self, seen: Seen, *, kind: str, due: float) -> None:
        answer = await self.connection.ask("GET", self._path, headers={"If-None-Match": self._tag} if self._tag else {})
        self._tag = answer.headers.get("etag", self._tag)
        seen.note(kind, time.monotonic() - due, answer.status)

    async def poll(self, seen: Seen, *, interval: float, until: float) -> None:
        due = time.monotonic() + random.uniform(0, interval)
        while due < until:
            await seen.wait_until(due)
            await self.ask(seen, kind=POLL, due=due)
            due += interval


async def submit(connection: Connection) -> tuple[int, str]:
    """Submit a job; return the status and the path of the job."""
    body = {"model": MODEL, "ratio": 0.25, "calibration": "builtin:pydoc-topics"}
    try:
        answer = await connection.ask("POST", "/jobs", body=json.dumps(body).encode())
    except (OSError, EOFError):
        return NO_ANSWER, ""
    return answer.status, answer.headers.get("location", "")


async def arrive(url: str, *, rate: float, seen: Seen, until: float) -> None:
    """Submit jobs at a constant rate, each over any connection that is free."""
    free: list[Connection] = []
    tasks: set[asyncio.Task[None]] = set()

    async def one(due: float) -> None:
        connection = free.pop() if free else Connection(url)
        status, _ = await submit(connection)
        seen.note(SUBMIT, time.monotonic() - due, status)
        free.append(connection)

    due = time.monotonic()
    while rate and due < until:
        await seen.wait_until(due)
        task = asyncio.create_task(one(due))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        due += 1 / rate
    if tasks:
        await asyncio.gather(*tasks)
    seen.reopened += sum(connection.reopened for connection in free)
    for connection in free:
        connection.close()


async def measure(
    url: str, *, pollers: int, interval: float, arrivals: float, seconds: float, api: psutil.Process
) -> Seen:
    seen, first = Seen(), Connection(url)
    clients = [Poller(url, (await submit(first))[1]) for _ in range(pollers)]
    first.close()
    gc.collect()
    gc.freeze()  # so that no garbage collection of the clients adds to the latencies
    for _ in range(UNLOADED_ROUNDS):
        for poller in clients:
            await poller.ask(seen, kind=ALONE, due=time.monotonic())
    began, api_before, client_before = time.monotonic(), busy(api), time.process_time()
    waited_before = waited(api)
    async with asyncio.TaskGroup() as group:
        group.create_task(arrive(url, rate=arrivals, seen=seen, until=began + seconds))
        for poller in clients:
            group.create_task(poller.poll(seen, interval=interval, until=began + seconds))
    seen.api_seconds, seen.client_seconds = busy(api) - api_before, time.process_time() - client_before
    waited_after = waited(api)
    if waited_before is not None and waited_after is not None:
        seen.api_waited = waited_after - waited_before
    for poller in clients:
        seen.reopened += poller.connection.reopened
        poller.connection.close()
    await measure_list(url, seen)
    return seen


async def measure_list(url: str, seen: Seen) -> None:
    """How large a list of `LISTED_JOBS` jobs is, and how long it takes. Submits jobs until there are that many."""
    connection = Connection(url)
    path = f"/jobs?limit={LISTED_JOBS}"
    while True:
        began = time.monotonic()
        answer = await connection.ask("GET", path, headers={"Accept-Encoding": "gzip"})
        seen.list_seconds, seen.list_bytes = time.monotonic() - began, len(answer.body)
        assert answer.headers.get("content-encoding") == "gzip", answer.headers
        missing = LISTED_JOBS - len(json.loads(gzip.decompress(answer.body))["items"])
        if not missing:
            break
        for _ in range(missing):
            await submit(connection)
    connection.close()


def busy(process: psutil.Process) -> float:
    """Processor seconds that a process has used so far."""
    spent = process.cpu_times()
    return float(spent.user + spent.system)


def waited(process: psutil.Process) -> float | None:
    """Seconds that its threads have waited for a processor so far; `None` if the system does not count them."""
    try:
        each = [path.read_text().split() for path in Path(f"/proc/{process.pid}/task").glob("*/schedstat")]
        return sum(int(counts[1]) for counts in each) / 1e9 if each else None
    except OSError:
        return None


def report(seen: Seen, *, seconds: float) -> bool:
    """Print the table; return whether all limits are met and all requests were answered."""
    print("| request | number | 5xx | p50 | p95 | p99 | slowest |")
    print("|---|---|---|---|---|---|---|")
    for kind, each in seen.seconds.items():
        failed = sum(count for status, count in seen.statuses[kind].items() if status >= 500)
        parts = " | ".join(f"{percentile(each, part) * 1e3:.1f} ms" for part in (0.5, 0.95, 0.99, 1.0))
        print(f"| `{kind}` | {len(each)} | {failed} | {parts} |")
    alone, p99 = percentile(seen.seconds[ALONE], 0.5), percentile(seen.seconds[POLL], 0.99)
    statuses = sum(seen.statuses.values(), Counter())
    lag = " / ".join(f"{percentile(seen.lags, part) * 1e3:.1f}" for part in (0.5, 0.95, 0.99, 1.0))
    unchanged = seen.statuses[POLL][304] / len(seen.seconds[POLL])
    print(f"\np99 {p99 * 1e3:.1f} ms, {(p99 - alone) * 1e3:.1f} ms above the unloaded median ", end="")
    print(f"(limit {MOST_ABOVE_SECONDS * 1e3:.0f} ms), which is {p99 / alone:.1f} times as long")
    print(f"304 for {unchanged:.0%} of the polls (limit {FEWEST_UNCHANGED:.0%})")
    print(f"lag of the clients, included above: p50 / p95 / p99 / maximum {lag} ms")
    print(f"processors used, of {CORES}: API {seen.api_seconds / seconds:.2f}, ", end="")
    print(f"clients {seen.client_seconds / seconds:.2f}")
    if seen.api_waited is not None:
        print(f"threads of the API were ready but had no processor for {seen.api_waited / seconds:.2f} of the time")
    print(f"statuses {dict(statuses)}; {seen.reopened} connections were closed while idle and opened again")
    print(f"{LISTED_JOBS} jobs in one list: {seen.list_bytes / 1e3:.1f} kB with gzip ", end="")
    print(f"(limit {MOST_LIST_BYTES / 1e3:.0f} kB), {seen.list_seconds * 1e3:.0f} ms")
    is_answered = not any(status == NO_ANSWER or status >= 400 for status in statuses)
    is_fast = p99 - alone <= MOST_ABOVE_SECONDS and unchanged >= FEWEST_UNCHANGED
    return is_fast and seen.list_bytes <= MOST_LIST_BYTES and is_answered


def share_processors() -> None:
    """Limit this process and its future children to two processors."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:CORES]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pollers", type=int, default=200, help="clients (default: %(default)s)")
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between two requests of a poller")
    parser.add_argument("--arrivals", type=float, default=20.0, help="jobs submitted per second")
    parser.add_argument("--seconds", type=float, default=60.0, help="duration (default: %(default)s)")
    options = parser.parse_args()
    share_processors()
    with installation(embedded=False, settings={}) as (site, _):
        api = site.start_api()
        assert api.url is not None
        load = measure(
            api.url,
            pollers=options.pollers,
            interval=options.interval,
            arrivals=options.arrivals,
            seconds=options.seconds,
            api=psutil.Process(api.pid),
        )
        good = report(uvloop.run(load), seconds=options.seconds)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
