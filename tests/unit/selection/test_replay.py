"""Which held-out sequences the judge counts."""

import torch

from replaceme_core.activations.capture import Activations
from replaceme_core.calibration.repeated import NAME
from replaceme_core.families.resolve import resolve
from replaceme_core.models.block_runner import BlockRunner
from replaceme_core.selection.replay import held_out_judge
from tests.fixtures.models.tiny import tiny_model, token_ids


@torch.inference_mode()
def test_repeated_passages_count_only_where_a_refit_follows() -> None:
    tokens = token_ids(8, 16)
    activations = Activations(
        block_runner=BlockRunner(resolved=resolve(tiny_model())),
        fit=tokens[:4],
        held_out=tokens[4:],
        batch_size=2,
        advance=lambda _: None,
        held_out_sources=torch.tensor([0, 1, 0, 1]),
        source_names=("text", NAME),
    )
    activations.capture()
    plain, recall = held_out_judge(activations), held_out_judge(activations, recall=True)
    losses = [2 * loss if source == 1 else loss for loss, source in zip(plain.dense, plain.sources, strict=True)]
    assert plain.score(losses) == plain.score(plain.dense) == 0
    assert recall.score(losses) > 1
    assert dict(plain.by_source(losses, beside=losses))[NAME] > 0
