"""Throughput of many tiny jobs while workers are killed at random; checks that no job is lost or published twice.

    python -m benchmarks.load [--jobs 1000] [--workers 4] [--rate 0] [--kill-every 15] [--seed N]
    python -m benchmarks.load --embedded [--jobs 100]

Jobs are submitted over HTTP, all at once or `--rate` a second. Everything except the model work is real: API,
PostgreSQL, the Redis protocol, Celery workers, the Hub's protocol and a runner process for each job. About every
`--kill-every` seconds one worker and all its processes are killed with SIGKILL, and another worker is started.
With `--embedded`, SQLite, the filesystem broker and one worker are used. The exit status is 1 if a check fails.
"""

import argparse
import http.client
import json
import random
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from sqlalchemy import func, select

from benchmarks.harness.history import replayed, written
from benchmarks.harness.installation import HubProcess, installation
from benchmarks.harness.jobs import owner_of
from benchmarks.harness.processes import Started
from benchmarks.harness.site import MODEL, Site
from benchmarks.percentile import percentile
from replaceme_core.ledger import reading
from replaceme_core.ledger.states import TERMINAL, JobStatus
from replaceme_core.ledger.tables import JobRow

LEASE_SECONDS, SWEEP_SECONDS = 10, 2
SUBMITTERS = 4
STALL_SECONDS = 120.0


@dataclass(kw_only=True)
class WorkerKiller:
    """Kills workers at random moments and starts others in their place."""

    site: Site
    workers: list[Started]
    every_seconds: float
    draw: random.Random
    kills: int = 0
    over: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self.over.wait(self.draw.uniform(0.5, 1.5) * self.every_seconds):
            place = self.draw.randrange(len(self.workers))
            self.workers[place].kill_tree()
            self.kills += 1
            self.workers[place] = self.site.launch_worker(name=f"w{place}")


def submit_all(url: str, jobs: int, *, rate: float) -> None:
    """Submit all jobs. Raises `RuntimeError` for any status other than 202."""
    began = time.monotonic()

    def submit(numbers: range) -> None:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        for number in numbers:
            if rate:
                time.sleep(max(began + number / rate - time.monotonic(), 0))
            body = {"model": MODEL, "ratio": 0.25, "calibration": "builtin:pydoc-topics"}
            body |= {"output": f"acme/load-{number}", "evaluation": {"enabled": False}}  # type: ignore[dict-item]
            headers = {"Content-Type": "application/json", "Idempotency-Key": f"load-{number}"}
            connection.request("POST", "/jobs", json.dumps(body), headers)
            response = connection.getresponse()
            content = response.read()
            if response.status != 202:
                raise RuntimeError(f"job {number}: {response.status} {content[:500]!r}")
        connection.close()

    with ThreadPoolExecutor(SUBMITTERS) as pool:
        for done in [pool.submit(submit, range(first, jobs, SUBMITTERS)) for first in range(SUBMITTERS)]:
            done.result()


def wait_for_all(site: Site, jobs: int) -> None:
    """Wait until all jobs have ended. Raises `RuntimeError` when none has ended for `STALL_SECONDS`."""
    ended, at, reported = -1, time.monotonic(), time.monotonic()
    while True:
        with site.database.session(read_only=True) as session:
            found = session.scalars(select(func.count()).where(JobRow.status.in_(TERMINAL))).one()
        if found != ended:
            ended, at = found, time.monotonic()
        if ended >= jobs:
            return
        if time.monotonic() - at > STALL_SECONDS:
            raise RuntimeError(f"only {ended} of {jobs} jobs have ended, and none for {STALL_SECONDS:.0f} s")
        if time.monotonic() - reported > 15:
            reported = time.monotonic()
            print(f"  {ended} of {jobs} jobs have ended", file=sys.stderr)
        time.sleep(0.5)


def faults_of(site: Site, hub: HubProcess, jobs: int) -> list[str]:
    """What is wrong: jobs that are missing, failed, or were published twice or never; files and processes left over."""
    faults = []
    with site.database.session(read_only=True) as session:
        ids = session.execute(select(JobRow.id, JobRow.status, JobRow.spec)).all()
        if len(ids) != jobs:
            faults.append(f"{len(ids)} rows for {jobs} jobs")
        for job_id, status, spec in ids:
            if status is not JobStatus.SUCCEEDED:
                faults.append(f"job {job_id} is {status}")
            output = spec["output"]
            assert isinstance(output, dict)
            commits = hub.commits(str(output["repo_id"]))
            if commits != [f"ReplaceMe-Job: {job_id}"]:
                faults.append(f"job {job_id} has the commits {commits}")
            try:
                if replayed(
                    reading.events(session, job_id, limit=1000, owner=owner_of(session, job_id)).items
                ) != written(session, job_id):
                    faults.append(f"the row of job {job_id} does not follow from its events")
            except AssertionError as error:
                faults.append(f"job {job_id} has an impossible history: {error}")
    faults += [f"left over: {name}" for name in site.workspaces()]
    faults += [f"left over: runner {process.pid}" for process in site.runners()]
    return faults


def report(site: Site, *, jobs: int, kills: int) -> None:
    """Print the table of times."""
    with site.database.session(read_only=True) as session:
        rows = session.execute(select(JobRow.created_at, JobRow.started_at, JobRow.finished_at, JobRow.attempt)).all()
    waits = [(row.started_at - row.created_at).total_seconds() for row in rows]
    runs = [(row.finished_at - row.started_at).total_seconds() for row in rows if row.attempt == 1]
    seconds = (max(row.finished_at for row in rows) - min(row.created_at for row in rows)).total_seconds()
    attempts = sum(row.attempt for row in rows)
    print("| jobs | seconds | jobs per minute | submit to start p50 | p99 | run p50 | kills | attempts lost |")
    print("|---|---|---|---|---|---|---|---|")
    print(
        f"| {jobs} | {seconds:.0f} | {60 * jobs / seconds:.0f} | {percentile(waits, 0.5):.2f} s | "
        f"{percentile(waits, 0.99):.2f} s | {percentile(runs, 0.5):.2f} s | {kills} | {attempts - jobs} |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, help="default: 1000, embedded 100")
    parser.add_argument("--workers", type=int, help="default: 4, embedded 1")
    parser.add_argument("--embedded", action="store_true", help="SQLite and the filesystem broker")
    parser.add_argument("--rate", type=float, default=0, help="jobs submitted per second; 0: all at once (default)")
    parser.add_argument(
        "--kill-every", type=float, default=15, help="seconds between kills; 0: no worker is killed (default: 15)"
    )
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="of the kills (default: random)")
    options = parser.parse_args()
    jobs = options.jobs or (100 if options.embedded else 1000)
    workers = options.workers or (1 if options.embedded else 4)
    print(f"{jobs} jobs, {workers} workers, seed {options.seed}", file=sys.stderr)
    settings = {
        "REPLACEME_LEASE_SECONDS": str(LEASE_SECONDS),
        "REPLACEME_SWEEP_SECONDS": str(SWEEP_SECONDS),
        "REPLACEME_MAX_ATTEMPTS": "100",
    }
    with installation(embedded=options.embedded, settings=settings) as (site, hub):
        started = [site.launch_worker(name=f"w{place}") for place in range(workers)]
        for worker in started:
            site.wait_for_worker(worker)
        api = site.start_api()
        assert api.url is not None
        draw = random.Random(options.seed)
        killer = WorkerKiller(site=site, workers=started, every_seconds=options.kill_every, draw=draw)
        thread = threading.Thread(target=killer.run)
        if options.kill_every:
            thread.start()
        try:
            submit_all(api.url, jobs, rate=options.rate)
            wait_for_all(site, jobs)
        finally:
            killer.over.set()
            if options.kill_every:
                thread.join()
        time.sleep(3 * SWEEP_SECONDS)  # until the sweep has removed what the last kill left over
        report(site, jobs=jobs, kills=killer.kills)
        faults = faults_of(site, hub, jobs)
    for fault in faults[:50]:
        print(fault)
    print(
        "no job was lost or published twice, and nothing is left over"
        if not faults
        else f"{len(faults)} faults, see above"
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
