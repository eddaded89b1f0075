"""SIGKILL during a sharded calibration: of the job's own worker, and of a worker that computes shards of it.

On real servers with the real pipeline. The result has the same bytes as that of a job without any fault.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
import pytest

from benchmarks.harness.processes import wait_until
from benchmarks.harness.runners.gates import is_held, open_gate, open_gates, set_gate
from replaceme_core.ledger.records import Job
from tests.fixtures.chaos.cluster import Cluster
from tests.fixtures.chaos.kills import Target, kill
from tests.fixtures.chaos.points import REACH_SECONDS, Point
from tests.fixtures.worker.shards import is_shard_helper

pytestmark = [pytest.mark.chaos, pytest.mark.matrix]

SHARD = Point(name="shard")
FIELDS: dict[str, object] = {
    "compute": {"device": "cpu", "threads": 1, "batch_size": 1, "shards": 4},
    "evaluation": {"enabled": False},
}


def helper_of(cluster: Cluster) -> psutil.Process:
    """The runner that computes shards of another worker's job."""
    return next(process for process in cluster.runners() if is_shard_helper(process))


def kill_helper(cluster: Cluster, target: Target) -> None:
    runner = helper_of(cluster)
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
    """The weights of a job without any fault."""
    found: list[bytes] = []

    def weights() -> bytes:
        if not found:
            whole_cluster.start_workers()
            ended = whole_cluster.assert_succeeds(whole_cluster.submit(**FIELDS))
            found.append(whole_cluster.hub.content(str(ended.spec.output.repo_id), "model.safetensors"))
        return found[0]

    return weights


@contextmanager
def helped(cluster: Cluster) -> Iterator[Job]:
    """A new job. Another worker holds one of its shards and is stopped at a gate; its own worker continues."""
    job = cluster.submit(enqueue=False, **FIELDS)
    for place in ("shard", "helper"):  # its own worker could be done before another one has begun
        set_gate(cluster.data, job.id, place)
    cluster.enqueue(job.id)
    try:
        for place in ("shard", "helper"):
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
    with helped(real_cluster) as job:
        kill_helper(real_cluster, target)
        ended = real_cluster.assert_succeeds(job)
    assert real_cluster.hub.content(str(ended.spec.output.repo_id), "model.safetensors") == expected
    real_cluster.assert_clean()


def test_an_outage_of_the_database_does_not_stop_the_shards(real_cluster: Cluster) -> None:
    if real_cluster.postgres is None:
        pytest.skip("the server is not ours to take away")
    with SHARD.reached(real_cluster, **FIELDS) as job:
        real_cluster.postgres.crash()
        real_cluster.postgres.start()
    wait_until(lambda: real_cluster.job(job.id).is_terminal, seconds=120, what=real_cluster.describe(job.id))
    real_cluster.assert_succeeds(job)
    real_cluster.assert_clean()
