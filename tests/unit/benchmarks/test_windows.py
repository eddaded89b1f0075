"""`benchmarks.windows` measures what surgery makes, without carrying it out."""

import math

import pytest
import torch

from benchmarks.windows import Bench
from tests.fixtures.models.tasks import OWN_TEXT, carry_out, make_task, mean_loss, operate
from tests.fixtures.models.tiny import tiny_model, token_ids

FIT, HELD_OUT = OWN_TEXT[:16], OWN_TEXT[48:]


@pytest.mark.parametrize("method", ["least_squares", "refit"])
@torch.inference_mode()
def test_a_pruning_measured_in_place_is_that_of_the_operated_model(method: str) -> None:
    task, _ = make_task(tiny_model(), fit=FIT, held_out=HELD_OUT, drop=[2, 3], method={"name": method})
    tokens = token_ids(4, 24, seed=5)
    pruning = carry_out(task)
    bench = Bench(task=task, tokens=tokens)
    expected = math.exp(mean_loss(operate(tiny_model(), pruning), tokens))
    assert bench.perplexity(pruning) == pytest.approx(expected, rel=1e-4)
    assert bench.perplexity(pruning) == bench.perplexity(pruning), "the model is as before"
