"""SIGKILL at every point of a job, of a whole worker, of its supervising process alone and of its runner alone.

After each the job has succeeded, its result is on the Hub once, and nothing else is left.
"""

import pytest

from benchmarks.harness.processes import wait_until
from tests.fixtures.chaos import points
from tests.fixtures.chaos.cluster import Cluster
from tests.fixtures.chaos.points import Point, Target, kill

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
    wait_until(lambda: cluster.hub.count("POST", refused) == 2, what="the late request")
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
            what="the next attempt",
        )
        kill(cluster, target, job.id)
        cluster.start_workers()
    cluster.assert_succeeds(job)
    cluster.assert_clean()


TARGETS = list(Target)
HUB_POINTS = [point for point in points.EVERYWHERE if not point.in_runner]
REAL_CASES = [(TARGETS[place % 3], point) for place, point in enumerate(points.IN_RUNNER)]
REAL_CASES += [(TARGETS[place % 2], point) for place, point in enumerate(HUB_POINTS)]


@pytest.mark.matrix
@pytest.mark.parametrize(
    ("target", "point"), [pytest.param(target, point, id=f"{target}-{point}") for target, point in REAL_CASES]
)
def test_kill_with_the_real_pipeline(real_cluster: Cluster, target: Target, point: Point) -> None:
    with point.reached(real_cluster, evaluation={"enabled": True, "samples": 2}) as job:
        kill(real_cluster, target, job.id)
    real_cluster.assert_succeeds(job)
    real_cluster.assert_clean()


@pytest.mark.matrix
def test_two_attempts_publish_the_same_as_one(real_cluster: Cluster) -> None:
    """A tiny model, torch, a result that loads."""
    import torch  # the other tests run without it
    from transformers import AutoModelForCausalLM

    from tests.fixtures.models.tiny import BLOCKS

    whole = real_cluster.assert_succeeds(real_cluster.submit())
    with points.IN_RUNNER[2].reached(real_cluster) as job:
        kill(real_cluster, Target.TREE, job.id)
    killed = real_cluster.assert_succeeds(job)
    first, second = (str(ended.spec.output.repo_id) for ended in (whole, killed))
    content = [real_cluster.hub.content(repo_id, "model.safetensors") for repo_id in (first, second)]
    assert content[0] == content[1]
    assert whole.result is not None
    assert len(whole.result.kept_blocks) < BLOCKS
    folder = real_cluster.data / "loaded"
    folder.mkdir()
    for path in real_cluster.hub.commits(second)[-1].tree:
        (folder / path).write_bytes(real_cluster.hub.content(second, path))
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.num_hidden_layers == len(whole.result.kept_blocks)
    with torch.inference_mode():
        assert model(torch.tensor([[1, 2, 3]])).logits.isfinite().all()
