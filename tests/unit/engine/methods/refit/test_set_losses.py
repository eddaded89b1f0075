"""Held-out losses of sets of blocks."""

from typing import Any

import pytest
import torch

from replaceme_core.engine.methods.refit_choice import SetLosses
from replaceme_core.engine.methods.replay import variant_losses
from tests.fixtures.models.tasks import make_task, sampled
from tests.fixtures.models.tiny import tiny_model

FIT, HELD_OUT = sampled(tiny_model(), 16, 24, seed=1), sampled(tiny_model(), 8, 24, seed=2)


@torch.inference_mode()
def test_batches_that_will_be_asked_for_are_run_together(monkeypatch: pytest.MonkeyPatch) -> None:
    task, _ = make_task(tiny_model(), remove=2, fit=FIT, held_out=HELD_OUT, method={"name": "refit"})
    task.activations.capture()
    losses = SetLosses(task)
    apart = losses.whole([2])
    asked = list[int]()

    def noted(*given: Any, batches: list[int], **named: Any) -> list[list[float]]:
        asked.append(len(batches))
        return variant_losses(*given, batches=batches, **named)

    monkeypatch.setattr("replaceme_core.engine.methods.refit_choice.variant_losses", noted)
    assert [losses.loss([2], batch) for batch in range(8)] == pytest.approx(apart)
    assert asked == [4, 4], "nothing is left out before four batches of a source"
