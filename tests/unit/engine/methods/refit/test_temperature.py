"""One factor for the confidence of a pruned model: found where the held-out loss is least, kept by the norm."""

import pytest
import torch

from replaceme_core.engine.methods.judge import Judge
from replaceme_core.engine.methods.refit import LEAST, MOST, fit_scale, least
from replaceme_core.engine.model.block_runner import BlockRunner, predictions_of, summed_losses
from replaceme_core.engine.model.changes import scale_final_norm
from replaceme_core.families.resolve import resolve
from tests.fixtures.models.tasks import mean_loss, sampled
from tests.fixtures.models.tiny import BLOCKS, VARIANTS, Variant, tiny_model, token_ids

GEMMA = next(one for one in VARIANTS if one.name == "gemma2")
PLAIN = next(one for one in VARIANTS if one.name == "opt-plain")


def streams_of(block_runner: BlockRunner, tokens: torch.Tensor) -> list[torch.Tensor]:
    streams = []
    for batch in tokens.split(4):
        stream = block_runner.enter(batch)
        for block in range(BLOCKS):
            stream = block_runner.run(block, stream)
        streams.append(stream)
    return streams


@torch.inference_mode()
def found_for(variant: Variant, tokens: torch.Tensor) -> tuple[float, float, float]:
    block_runner = BlockRunner(resolved=resolve(tiny_model(variant)))
    batches = list(tokens.split(4))
    judge = Judge(
        sources=[0] * len(batches), predictions=[predictions_of([one]) for one in batches], dense=[1.0] * len(batches)
    )
    streams = streams_of(block_runner, tokens)
    unscaled = summed_losses(block_runner, streams, batches)
    scale, losses = fit_scale(block_runner, streams, batches, judge=judge, unscaled=unscaled)
    return scale, judge.mean(losses), judge.mean(unscaled)


@pytest.mark.parametrize("variant", [VARIANTS[0], GEMMA], ids=lambda variant: variant.name)
def test_a_model_that_is_too_sure_is_made_less_so(variant: Variant) -> None:
    tokens = token_ids(8, 24, seed=3)  # nobody could foresee them
    scale, loss, plain = found_for(variant, tokens)
    assert LEAST <= scale < 1
    assert loss < plain
    model = tiny_model(variant)
    assert plain == pytest.approx(mean_loss(model, tokens), rel=1e-5)
    scale_final_norm(resolve(model), scale)
    with torch.inference_mode():
        assert loss == pytest.approx(mean_loss(model, tokens), rel=1e-5), (
            "the operated model is worth what was promised"
        )


def test_a_model_that_is_as_sure_as_it_may_be_is_left_alone() -> None:
    tokens = sampled(tiny_model(), 32, 48, seed=4)  # its own: its confidence is right
    scale, loss, plain = found_for(VARIANTS[0], tokens)
    assert scale == pytest.approx(1.0, abs=0.05)
    assert loss <= plain


def test_a_norm_without_a_weight_takes_no_factor() -> None:
    scale, loss, plain = found_for(PLAIN, token_ids(8, 24, seed=3))
    assert scale == 1.0
    assert loss == plain


def test_no_point_is_taken_that_was_not_seen_to_be_better() -> None:
    assert least(lambda scale: -abs(scale - 0.95), known=-0.05)[0] in (0.9, 1.0), "not a parabola: the best point seen"
    assert least(lambda scale: (scale - 3) ** 2, known=4.0)[0] == MOST
    assert least(lambda scale: (scale - 0.2) ** 2, known=0.64)[0] == LEAST
    assert least(lambda _: 1.0, known=1.0)[0] == 1.0
