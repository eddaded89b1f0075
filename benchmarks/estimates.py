"""Plans beside what the jobs took: SmolLM2 on a service of its own, jobs of mixed sizes and methods, one after another.

    python -m benchmarks.estimates [--data DIR] [--jobs N]

The service is `replaceme serve` with its embedded defaults in a directory that is empty at first, or in DIR, whose
earlier jobs then count. Each job is planned right before it is submitted; its time is from its start to its end. Every
second the remaining time that the job shows is kept, and compared with what was left in truth: the column "left" has
the share of the run in which that was within the range shown. The exit status is 1 if a plan with at least one earlier
job is off by more than a factor of 1.5.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from api.cli.output.console import make_console
from api.client.client import Client
from api.client.models import Job
from benchmarks import smollm2
from benchmarks.demo import serve
from replaceme_core.report.figures import duration, time_range

MOST_OFF = 1.5
SMALL = {"dataset": "builtin:general", "samples": 16, "max_length": 128}
MIDDLE = {"dataset": "builtin:general", "samples": 32, "max_length": 256}
LARGE = {"dataset": "builtin:pydoc-topics", "samples": 64, "max_length": 512, "self_generated": 0.0}
JOBS: tuple[Mapping[str, object], ...] = (
    {"calibration": SMALL, "method": "least_squares"},
    {"calibration": LARGE, "method": "drop"},
    {"calibration": MIDDLE, "method": "auto"},
    {"calibration": SMALL, "method": "auto", "evaluation": {"enabled": False}},
    {"calibration": LARGE, "method": "least_squares", "ratio": 0.125},
    {"calibration": MIDDLE, "method": "refit"},
    {"calibration": SMALL, "method": "drop", "ratio": 0.125},
)
"""The fifth has the inputs of the second, the last those of the first: the activation cache has them."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, help="directory of the service; a new one without it")
    parser.add_argument("--jobs", type=int, default=len(JOBS), help="how many of the jobs run")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="replaceme-estimates-") as new:
        sys.exit(run(given.data or Path(new), jobs=JOBS[: given.jobs]))


def run(data: Path, *, jobs: tuple[Mapping[str, object], ...]) -> int:
    """Run the jobs and print a line for each; the exit status."""
    console, worst = make_console(stderr=False), 1.0
    data.mkdir(parents=True, exist_ok=True)
    smollm2.provide(data / "hub" / smollm2.REPO_ID)
    with serve(data) as ready, Client(ready()) as client:
        console.print(f"{'job':<36}{'planned':<24}{'by':>8}{'took':>14}{'off by':>8}{'left':>7}", soft_wrap=True)
        for one in jobs:
            request = {"model": smollm2.REPO_ID, "ratio": 0.25, **one}
            planned = client.plan(request).estimate
            assert planned is not None, "the request is refused"
            job, seen = _finished(client, client.submit(request))
            if job.status != "succeeded" or job.started_at is None or job.finished_at is None:
                raise SystemExit(f"job {job.id} ended as {job.status}: {job.error}")
            took = (job.finished_at - job.started_at).total_seconds()
            expected = planned.time
            off = max(expected.seconds / took, took / expected.seconds)
            worst = max(worst, off if expected.jobs else 1.0)
            name = f"{planned.method}, {planned.samples} x {planned.max_length}"
            by = f"{expected.jobs} jobs"
            range_shown = time_range(expected.low_seconds, expected.high_seconds)
            console.print(
                f"{name:<36}{range_shown:<24}{by:>8}{duration(took):>14}{off:>7.2f}x{_share_right(seen):>7.0%}",
                soft_wrap=True,
            )
    console.print(f"the worst plan after the first job is off by {worst:.2f}; at most {MOST_OFF} is wanted")
    return int(worst > MOST_OFF)


def _finished(client: Client, job: Job) -> tuple[Job, list[tuple[float, float]]]:
    """The job at its end, and each second how far the remaining time was from the truth, and how far it might be."""
    seen = []
    while not job.is_terminal:
        time.sleep(1.0)
        job = client.job(job.id)
        left, error = job.progress.eta_seconds, job.progress.eta_error_seconds
        if left is not None and error is not None and not job.is_terminal:
            seen.append((time.monotonic() + left, error))
    ended = time.monotonic()
    return job, [(abs(expected - ended), error) for expected, error in seen]


def _share_right(seen: list[tuple[float, float]]) -> float:
    return sum(off <= error + 1 for off, error in seen) / max(len(seen), 1)


if __name__ == "__main__":
    main()
