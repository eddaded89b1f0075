"""kill -9 at every point of a job, of a whole worker, of its supervising process alone and of its runner alone.

After each the job has succeeded, its result is on the Hub once, and nothing else is left.
"""

import pytest

from benchmarks.harness.processes import wait_until
from tests.fixtures.chaos import points
from tests.fixtures.chaos.cluster import Cluster
from tests.fixtures.chaos.kills import Victim, kill
from tests.fixtures.chaos.points import Point

pytestmark = pytest.mark.chaos


QUICK = {
    (Victim.SUPERVISOR, points.IN_RUNNER[0]),
    (Victim.RUNNER, points.IN_RUNNER[4]),
    (Victim.TREE, points.COMMIT),
    (Victim.TREE, points.COMMITTED),
}
"""What `make test` runs, too."""

CASES = [
    (victim, point)
    for point in points.EVERYWHERE
    for victim in Victim
    if point.in_runner or victim is not Victim.RUNNER
]


@pytest.mark.parametrize(
    ("victim", "point"),
    [
        pytest.param(
            victim, point, id=f"{victim}-{point}", marks=[] if (victim, point) in QUICK else pytest.mark.matrix
        )
        for victim, point in CASES
    ],
)
def test_kill(cluster: Cluster, victim: Victim, point: Point) -> None:
    with point.reached(cluster) as job:
        kill(cluster, victim, job.id)
    ended = cluster.outlive(job)
    assert ended.attempt >= 2 or point.carry_out, cluster.story(job.id)
    cluster.assert_tidy()


@pytest.mark.matrix
def test_a_commit_that_arrives_after_its_successor(cluster: Cluster) -> None:
    """The request of a dead worker may lie in the network for long; the condition on its parent stops it then."""
    with points.LATE_COMMIT.reached(cluster) as job:
        kill(cluster, Victim.TREE, job.id)
        ended = cluster.outlive(job)
        assert ended.attempt >= 2
    refused = rf"^/api/models/{job.spec.output.repo_id}/commit/"
    wait_until(lambda: cluster.hub.count("POST", refused) == 2, seconds=5, what="the late request")
    cluster.assert_published_once(ended)
    assert cluster.job(job.id) == ended
    cluster.assert_tidy()


@pytest.mark.matrix
@pytest.mark.parametrize("victim", list(Victim))
def test_the_same_job_is_hit_again_and_again(cluster: Cluster, victim: Victim) -> None:
    with points.IN_RUNNER[0].reached(cluster) as job:
        kill(cluster, victim, job.id)
        first = cluster.job(job.id).attempt
    for hit in range(2):
        wait_until(
            lambda hit=hit: cluster.job(job.id).attempt > first + hit and cluster.runners(),  # type: ignore[misc]
            seconds=60,
            what="the next attempt",
        )
        kill(cluster, victim, job.id)
        cluster.start_workers()
    cluster.outlive(job)
    cluster.assert_tidy()
