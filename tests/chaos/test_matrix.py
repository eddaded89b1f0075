"""SIGKILL at every point of a job, of a whole worker, of its supervising process alone and of its runner alone.

After each the job has succeeded, its result is on the Hub once, and nothing else is left.
"""

import pytest

from benchmarks.harness.processes import wait_until
from tests.fixtures.chaos import points
from tests.fixtures.chaos.cluster import Cluster
from tests.fixtures.chaos.kills import Target, kill
from tests.fixtures.chaos.points import Point

pytestmark = pytest.mark.chaos


QUICK = {
    (Target.SUPERVISOR, points.IN_RUNNER[0]),
    (Target.RUNNER, points.IN_RUNNER[4]),
    (Target.TREE, points.COMMIT),
    (Target.TREE, points.COMMITTED),
}
"""The cases that `make test` runs, too."""

CASES = [
    (target, point)
    for point in points.EVERYWHERE
    for target in Target
    if point.in_runner or target is not Target.RUNNER
]


@pytest.mark.parametrize(
    ("target", "point"),
    [
        pytest.param(
            target, point, id=f"{target}-{point}", marks=[] if (target, point) in QUICK else pytest.mark.matrix
        )
        for target, point in CASES
    ],
)
def test_kill(cluster: Cluster, target: Target, point: Point) -> None:
    with point.reached(cluster) as job:
        kill(cluster, target, job.id)
    ended = cluster.assert_succeeds(job)
    assert ended.attempt >= 2 or point.carry_out, cluster.describe(job.id)
    cluster.assert_clean()


@pytest.mark.matrix
def test_a_commit_that_arrives_after_its_successor(cluster: Cluster) -> None:
    """The request of a killed worker may arrive very late; the condition on its parent commit stops it."""
    with points.LATE_COMMIT.reached(cluster) as job:
        kill(cluster, Target.TREE, job.id)
        ended = cluster.assert_succeeds(job)
        assert ended.attempt >= 2
    refused = rf"^/api/models/{job.spec.output.repo_id}/commit/"
    wait_until(lambda: cluster.hub.count("POST", refused) == 2, seconds=5, what="the late request")
    cluster.assert_published_once(ended)
    assert cluster.job(job.id) == ended
    cluster.assert_clean()


@pytest.mark.matrix
@pytest.mark.parametrize("target", list(Target))
def test_the_same_job_is_killed_repeatedly(cluster: Cluster, target: Target) -> None:
    with points.IN_RUNNER[0].reached(cluster) as job:
        kill(cluster, target, job.id)
        first = cluster.job(job.id).attempt
    for kills in range(2):
        wait_until(
            lambda kills=kills: cluster.job(job.id).attempt > first + kills and cluster.runners(),  # type: ignore[misc]
            seconds=60,
            what="the next attempt",
        )
        kill(cluster, target, job.id)
        cluster.start_workers()
    cluster.assert_succeeds(job)
    cluster.assert_clean()
