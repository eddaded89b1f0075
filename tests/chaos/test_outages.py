"""Servers that stop and start again, workers that freeze, messages in any number and order."""

import random
import signal
import time
from collections.abc import Iterator
from uuid import uuid4

import psutil
import pytest
from redis import Redis
from sqlalchemy import select

from benchmarks.harness.processes import wait_until
from replaceme_core.errors import DatabaseUnreachable
from replaceme_core.ledger.records import Job
from replaceme_core.runner.messages import Stage
from tests.fixtures.chaos import points
from tests.fixtures.chaos.cluster import LEASE_SECONDS, Cluster
from tests.fixtures.chaos.points import Point

pytestmark = pytest.mark.chaos
matrix = pytest.mark.matrix

SHORT, LONG = 0.3, LEASE_SECONDS * 1.5


@pytest.mark.parametrize(
    ("point", "seconds"),
    [
        pytest.param(point, seconds, id=f"{point}-{'short' if seconds == SHORT else 'long'}", marks=marks)
        for point, seconds, marks in (
            (points.RESOLVE, LONG, matrix),
            (points.IN_RUNNER[0], SHORT, matrix),
            (points.IN_RUNNER[0], LONG, matrix),
            (points.UPLOAD, LONG, matrix),
            (points.COMMIT, LONG, matrix),
            (points.COMMITTED, SHORT, matrix),
            (points.COMMITTED, LONG, matrix),
        )
    ],
)
def test_postgresql_is_down_for_a_while(cluster: Cluster, point: Point, seconds: float) -> None:
    if cluster.postgres is None:
        pytest.skip("the server is not ours to stop")
    with point.reached(cluster) as job:
        cluster.postgres.crash()
        try:
            time.sleep(seconds)
        finally:
            cluster.postgres.start()
        wait_until(lambda: _answers(cluster), what="the database")
    cluster.assert_succeeds(job)
    cluster.assert_clean()


@pytest.mark.parametrize("point", [points.IN_RUNNER[0], pytest.param(points.COMMIT, marks=matrix)], ids=str)
def test_redis_is_down_for_a_while(cluster: Cluster, point: Point) -> None:
    """It loses its memory: the message of the second job is lost, that of the third is never sent."""
    if cluster.valkey is None:
        pytest.skip("the server is not ours to stop")
    with point.reached(cluster) as job:
        second = cluster.submit()
        cluster.valkey.crash()
        third = cluster.submit(enqueue=False)
        time.sleep(SHORT)
        cluster.valkey.start()
    for each in (job, second, third):
        cluster.assert_succeeds(each)
    cluster.assert_clean()


def test_redis_is_a_replica_for_a_while(cluster: Cluster) -> None:
    """As after a failover: it takes no message, and ends the wait of the workers for one."""
    if cluster.valkey is None:
        pytest.skip("the server is not ours to demote")
    with Redis.from_url(cluster.valkey.url) as client:
        client.replicaof("127.0.0.1", 1)  # where no server is
        try:
            time.sleep(LONG)
        finally:
            client.replicaof("NO", "ONE")
    assert [worker.process.poll() for worker in cluster.workers.values()] == [None, None]
    cluster.assert_succeeds(cluster.submit())
    cluster.assert_clean()


@pytest.fixture
def suspended() -> Iterator[list[psutil.Process]]:
    """Processes that get SIGCONT at the end, also after an error."""
    frozen: list[psutil.Process] = []
    yield frozen
    for process in frozen:
        try:
            process.send_signal(signal.SIGCONT)
        except psutil.NoSuchProcess:
            continue


@matrix
@pytest.mark.parametrize("whole", [True, False], ids=["tree", "supervisor"])
@pytest.mark.parametrize(
    "point", [points.RESOLVE, points.IN_RUNNER[0], points.IN_RUNNER[6], points.UPLOAD, points.LATE_COMMIT], ids=str
)
def test_a_worker_freezes_past_its_lease(
    cluster: Cluster, suspended: list[psutil.Process], point: Point, whole: bool
) -> None:
    with point.reached(cluster) as job:
        worker, supervisor = cluster.holder(job.id)
        family = [psutil.Process(worker.pid), *worker.children()] if whole else [supervisor]
        for process in family:
            process.suspend()
            suspended.append(process)
        ended = cluster.assert_succeeds(job)
        assert ended.attempt >= 2
        for process in family:
            process.resume()
    # it resumes inside its attempt, and abandons that without writing anything
    cluster.assert_clean()
    assert cluster.job(job.id) == ended
    cluster.assert_published_once(ended)
    cluster.assert_history(job.id)


@matrix
def test_a_worker_freezes_while_it_downloads(cluster: Cluster, suspended: list[psutil.Process]) -> None:
    """It holds the lock of a file in the cache that both workers share, so the other worker waits."""
    with points.DOWNLOAD.reached(cluster) as job:
        _, supervisor = cluster.holder(job.id)
        supervisor.suspend()
        suspended.append(supervisor)
        wait_until(lambda: cluster.job(job.id).stage is Stage.DOWNLOAD, what="a download")
        wait_until(lambda: cluster.job(job.id).attempt == 2, what="the second attempt")
        time.sleep(LEASE_SECONDS)
        supervisor.resume()
    assert_only_lapsed(cluster, job)
    cluster.assert_clean()


def test_messages_come_twice_reordered_and_for_unknown_jobs(cluster: Cluster) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 # shown when the test fails
    draw = random.Random(seed)
    jobs = [cluster.submit(enqueue=False) for _ in range(4)]
    messages = [job.id for job in jobs for _ in range(3)] + [str(uuid4()), str(uuid4())]
    draw.shuffle(messages)
    for job_id in messages:
        cluster.enqueue(job_id)
    for job in jobs:
        assert_only_lapsed(cluster, job)
    cluster.assert_clean()


def assert_only_lapsed(cluster: Cluster, job: Job) -> None:
    """It has succeeded, and no attempt before that has failed: on a busy machine a lease may lapse once more."""
    ended = cluster.assert_succeeds(job)
    lapsed = cluster.event_types(job.id).count("lease_lapsed")
    assert ended.attempt == 1 + lapsed, cluster.describe(job.id)


def _answers(cluster: Cluster) -> bool:
    try:
        with cluster.database.session(read_only=True) as session:
            session.execute(select(1))
    except DatabaseUnreachable:
        return False
    return True
