"""kill -9 while a calibration is shared: of who carries out the job, and of who computes shards of it.

On real servers with the real pipeline. The result is the one of a job that nobody disturbed, to the byte.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
import pytest

from benchmarks.harness.processes import wait_until
from benchmarks.harness.runners.gates import is_held, open_gate, open_gates, set_gate
from replaceme_core.jobs.records import Job
from tests.fixtures.chaos.cluster import Cluster
from tests.fixtures.chaos.kills import Target, kill
from tests.fixtures.chaos.points import REACH_SECONDS, Point
from tests.fixtures.worker.shards import is_visit

pytestmark = [pytest.mark.chaos, pytest.mark.matrix]

SHARD = Point(name="shard")
FIELDS: dict[str, object] = {
    "compute": {"device": "cpu", "threads": 1, "batch_size": 1, "shards": 4},
    "evaluation": {"enabled": False},
}


def visitor(cluster: Cluster) -> psutil.Process:
    """The runner that computes shards of another worker's job."""
    return next(process for process in cluster.runners() if is_visit(process))


def kill_visitor(cluster: Cluster, target: Target) -> None:
    runner = visitor(cluster)
    supervisor = psutil.Process(runner.ppid())
    match target:
        case Target.TREE:
            above = {process.pid for process in supervisor.parents()} | {supervisor.pid}
            next(each for each in cluster.workers.values() if each.pid in above).kill_tree()
        case Target.SUPERVISOR:
            supervisor.kill()
        case Target.RUNNER:
            runner.kill()


@pytest.fixture(scope="module")
def undisturbed(whole_cluster: Cluster) -> Callable[[], bytes]:
    """The weights of a job that nobody disturbs."""
    found: list[bytes] = []

    def weights() -> bytes:
        if not found:
            whole_cluster.start_workers()
            ended = whole_cluster.assert_succeeds(whole_cluster.submit(**FIELDS))
            found.append(whole_cluster.hub.content(str(ended.spec.output.repo_id), "model.safetensors"))
        return found[0]

    return weights


@contextmanager
def visited(cluster: Cluster) -> Iterator[Job]:
    """A new job, of whose shards another worker has one in hand and stands still; its own worker goes on."""
    job = cluster.submit(enqueue=False, **FIELDS)
    for place in ("shard", "visit"):  # its own worker could be done before another one has begun
        set_gate(cluster.data, job.id, place)
    cluster.enqueue(job.id)
    try:
        for place in ("shard", "visit"):
            wait_until(
                lambda place=place: is_held(cluster.data, job.id, place),  # type: ignore[misc]
                seconds=REACH_SECONDS,
                what=f"{place} of job {job.id}",
            )
        open_gate(cluster.data, job.id, "shard")
        yield job
    finally:
        open_gates(cluster.data)


@pytest.mark.parametrize("target", list(Target))
def test_the_jobs_own_worker_is_killed(real_cluster: Cluster, undisturbed: Callable[[], bytes], target: Target) -> None:
    expected = undisturbed()
    with SHARD.reached(real_cluster, **FIELDS) as job:
        kill(real_cluster, target, job.id)
    ended = real_cluster.assert_succeeds(job)
    assert ended.attempt >= 2
    assert real_cluster.hub.content(str(ended.spec.output.repo_id), "model.safetensors") == expected
    real_cluster.assert_clean()


@pytest.mark.parametrize("target", list(Target))
def test_another_worker_is_killed(real_cluster: Cluster, undisturbed: Callable[[], bytes], target: Target) -> None:
    expected = undisturbed()
    with visited(real_cluster) as job:
        kill_visitor(real_cluster, target)
        ended = real_cluster.assert_succeeds(job)
    assert real_cluster.hub.content(str(ended.spec.output.repo_id), "model.safetensors") == expected
    real_cluster.assert_clean()


def test_a_database_that_is_away_for_a_while_keeps_nobody_from_working(real_cluster: Cluster) -> None:
    if real_cluster.postgres is None:
        pytest.skip("the server is not ours to take away")
    with SHARD.reached(real_cluster, **FIELDS) as job:
        real_cluster.postgres.crash()
        real_cluster.postgres.start()
    wait_until(lambda: real_cluster.job(job.id).is_terminal, seconds=120, what=real_cluster.describe(job.id))
    real_cluster.assert_succeeds(job)
    real_cluster.assert_clean()
