"""SIGKILL during a sharded calibration: of the job's own worker, and of a worker that computes shards of it.

On real servers with the real pipeline. The result has the same bytes as that of a job without any fault.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
import pytest

from replaceme_core.jobs.records import Job
from tests.chaos.cluster import Cluster
from tests.chaos.points import REACH_SECONDS, Point
from tests.chaos.test_matrix import Victim, kill
from tests.fakes.gates import is_held, open_gate, open_gates, set_gate
from tests.fixtures.processes import wait_until
from tests.integration.test_worker_shards import is_shard_helper

pytestmark = [pytest.mark.chaos, pytest.mark.matrix]

SHARD = Point(name="shard")
FIELDS: dict[str, object] = {
    "compute": {"device": "cpu", "threads": 1, "batch_size": 1, "shards": 4},
    "evaluation": {"enabled": False},
}


def helper_of(cluster: Cluster) -> psutil.Process:
    """The runner that computes shards of another worker's job."""
    return next(process for process in cluster.runners() if is_shard_helper(process))


def kill_helper(cluster: Cluster, victim: Victim) -> None:
    runner = helper_of(cluster)
    supervisor = psutil.Process(runner.ppid())
    match victim:
        case Victim.TREE:
            above = {process.pid for process in supervisor.parents()} | {supervisor.pid}
            next(each for each in cluster.workers.values() if each.pid in above).kill_tree()
        case Victim.SUPERVISOR:
            supervisor.kill()
        case Victim.RUNNER:
            runner.kill()


@pytest.fixture(scope="module")
def undisturbed(whole_cluster: Cluster) -> Callable[[], bytes]:
    """The weights of a job without any fault."""
    found: list[bytes] = []

    def weights() -> bytes:
        if not found:
            whole_cluster.start_workers()
            ended = whole_cluster.outlive(whole_cluster.submit(**FIELDS))
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


@pytest.mark.parametrize("victim", list(Victim))
def test_the_jobs_own_worker_is_killed(real_cluster: Cluster, undisturbed: Callable[[], bytes], victim: Victim) -> None:
    expected = undisturbed()
    with SHARD.reached(real_cluster, **FIELDS) as job:
        kill(real_cluster, victim, job.id)
    ended = real_cluster.outlive(job)
    assert ended.attempt >= 2
    assert real_cluster.hub.content(str(ended.spec.output.repo_id), "model.safetensors") == expected
    real_cluster.assert_tidy()


@pytest.mark.parametrize("victim", list(Victim))
def test_another_worker_is_killed(real_cluster: Cluster, undisturbed: Callable[[], bytes], victim: Victim) -> None:
    expected = undisturbed()
    with helped(real_cluster) as job:
        kill_helper(real_cluster, victim)
        ended = real_cluster.outlive(job)
    assert real_cluster.hub.content(str(ended.spec.output.repo_id), "model.safetensors") == expected
    real_cluster.assert_tidy()


def test_an_outage_of_the_database_does_not_stop_the_shards(real_cluster: Cluster) -> None:
    if real_cluster.postgres is None:
        pytest.skip("the server is not ours to take away")
    with SHARD.reached(real_cluster, **FIELDS) as job:
        real_cluster.postgres.crash()
        real_cluster.postgres.start()
    wait_until(lambda: real_cluster.job(job.id).is_terminal, seconds=120, what=real_cluster.story(job.id))
    real_cluster.outlive(job)
    real_cluster.assert_tidy()
