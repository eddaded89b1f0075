"""SIGKILL at points of a job with the real pipeline: a tiny model, torch, a result that loads."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.fixtures.chaos import points
from tests.fixtures.chaos.cluster import Cluster
from tests.fixtures.chaos.kills import Target, kill
from tests.fixtures.chaos.points import Point
from tests.fixtures.models.tiny import BLOCKS

pytestmark = [pytest.mark.chaos, pytest.mark.matrix]

TARGETS = list(Target)
HUB_POINTS = [point for point in points.EVERYWHERE if not point.in_runner]
CASES = [(TARGETS[place % 3], point) for place, point in enumerate(points.IN_RUNNER)]
CASES += [(TARGETS[place % 2], point) for place, point in enumerate(HUB_POINTS)]


@pytest.mark.parametrize(
    ("target", "point"), [pytest.param(target, point, id=f"{target}-{point}") for target, point in CASES]
)
def test_kill(real_cluster: Cluster, target: Target, point: Point) -> None:
    with point.reached(real_cluster, evaluation={"enabled": True, "samples": 2}) as job:
        kill(real_cluster, target, job.id)
    real_cluster.assert_succeeds(job)
    real_cluster.assert_clean()


def test_two_attempts_publish_the_same_as_one(real_cluster: Cluster, tmp_path: object) -> None:
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
