"""One worker whose clock is two hours ahead: leases use the clock of the database, so nothing happens early or late."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.fixtures.chaos import points
from tests.fixtures.chaos.cluster import LEASE_SECONDS, WORKERS, Cluster
from tests.fixtures.chaos.points import Point, Target, kill

pytestmark = [pytest.mark.chaos, pytest.mark.matrix]

SHIFT = Path(__file__).parents[1] / "fakes" / "shifted_clock"


def shifted_environment() -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join([str(SHIFT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)}


LONGER_LEASE_SECONDS = 4 * LEASE_SECONDS


@pytest.fixture
def longer_leases(stub_cluster: Cluster) -> Iterator[None]:
    """Leases that do not lapse on a busy machine, and still are renewed during a test."""
    before = stub_cluster.extra
    stub_cluster.extra = {**before, "REPLACEME_LEASE_SECONDS": str(LONGER_LEASE_SECONDS)}
    for worker in stub_cluster.workers.values():
        worker.kill_tree()
    yield
    for worker in stub_cluster.workers.values():
        worker.kill_tree()
    stub_cluster.extra = before


@pytest.fixture
def skewed(stub_cluster: Cluster) -> Iterator[Cluster]:
    """The second worker, and all its processes, are two hours ahead."""
    stub_cluster.start_workers()
    stub_cluster.workers["w2"].kill_tree()
    stub_cluster.worker_extra["w2"] = shifted_environment()
    stub_cluster.start_workers()
    yield stub_cluster
    stub_cluster.reset()
    stub_cluster.workers["w2"].kill_tree()
    del stub_cluster.worker_extra["w2"]


def test_the_clock_is_shifted() -> None:
    program = "import datetime, time; print(time.time(), datetime.datetime.now(datetime.timezone.utc).timestamp())"
    environment = {**os.environ, **shifted_environment()}
    printed = subprocess.run(
        [sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True
    )
    for value in printed.stdout.split():
        assert 7100 < float(value) - time.time() < 7300


def test_it_requeues_nothing_early(longer_leases: None, skewed: Cluster) -> None:
    """To one of the two a running job's lease, and a message that was just delivered, look two hours old."""
    with points.IN_RUNNER[0].reached(skewed) as first:
        for _ in range(3):
            assert skewed.assert_succeeds(skewed.submit()).attempt == 1
        time.sleep(LONGER_LEASE_SECONDS * 1.5)
    assert skewed.assert_succeeds(first).attempt == 1, skewed.describe(first.id)
    skewed.assert_clean()


@pytest.mark.parametrize("point", [points.IN_RUNNER[0], points.UPLOAD, points.COMMITTED], ids=str)
@pytest.mark.parametrize("target", WORKERS)
def test_a_job_moves_from_one_clock_to_the_other(skewed: Cluster, point: Point, target: str) -> None:
    others = [worker for name, worker in skewed.workers.items() if name != target]
    suspended = [psutil.Process(worker.pid) for worker in others]
    for process in suspended:
        process.suspend()
    try:
        with point.reached(skewed) as job:
            for process in suspended:
                process.resume()
            assert skewed.holder(job.id)[0] is skewed.workers[target]
            kill(skewed, Target.TREE, job.id)
    finally:
        for process in suspended:
            process.resume()
    ended = skewed.assert_succeeds(job)
    assert ended.attempt >= 2 or point is points.COMMITTED
    assert ended.started_at is not None
    assert ended.finished_at is not None
    assert 0 <= (ended.finished_at - ended.started_at).total_seconds() < 600
    skewed.assert_clean()
