"""Which held-out sequences the judge counts, and how they are run."""

import math

import pytest
import torch

from replaceme_core.engine.activations.capture import Activations
from replaceme_core.engine.methods.replay import held_out_judge, next_losses, variant_losses
from replaceme_core.engine.model.block_runner import BlockRunner
from replaceme_core.engine.model.changes import Cut, FittedCut, Variant
from replaceme_core.engine.text.tokens import REPEATED
from replaceme_core.families.resolve import resolve
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
        source_names=("text", REPEATED),
    )
    activations.capture()
    plain, recall = held_out_judge(activations), held_out_judge(activations, recall=True)
    losses = [2 * loss if source == 1 else loss for loss, source in zip(plain.dense, plain.sources, strict=True)]
    assert plain.score(losses) == plain.score(plain.dense) == 0
    assert recall.score(losses) == pytest.approx(1.5 * math.log(2)), "twice, beside the mean"
    elsewhere = [2 * loss if source == 0 else loss for loss, source in zip(plain.dense, plain.sources, strict=True)]
    assert recall.score(elsewhere) == pytest.approx(0.5 * math.log(2)), "the worst source does not count twice here"
    assert dict(plain.by_source(losses, beside=losses))[REPEATED] > 0


@torch.inference_mode()
def test_losses_on_some_batches_are_judged_beside_the_dense_ones_on_these() -> None:
    tokens = token_ids(12, 16)
    activations = activations_of(tokens[:4], tokens[4:], batch_size=1)
    every, some = held_out_judge(activations), held_out_judge(activations, batches=activations.held_out_batches[2:5])
    assert some.dense == every.dense[2:5]
    assert some.batches == 3


@torch.inference_mode()
@pytest.mark.parametrize(("batch_size", "runs"), [(1, [1] * 17), (4, [4, 4, 4, 4, 1])])
def test_small_batches_are_run_together_and_the_losses_are_those_of_each(
    monkeypatch: pytest.MonkeyPatch, batch_size: int, runs: list[int]
) -> None:
    tokens = token_ids(21, 16)
    activations = activations_of(tokens[:4], tokens[4:], batch_size=batch_size)
    activations.capture()
    single = [variant_losses(activations, PLAIN, batches=[batch])[0] for batch in activations.held_out_batches]
    seen = sizes_of_runs(monkeypatch)
    losses = variant_losses(activations, PLAIN)
    assert losses == pytest.approx(single, rel=1e-5)
    assert seen == runs


@torch.inference_mode()
@pytest.mark.parametrize(("batch_size", "runs"), [(1, [1] * 17), (4, [4, 4, 4, 4, 1])])
def test_a_cut_is_replayed_on_small_batches_together(
    monkeypatch: pytest.MonkeyPatch, batch_size: int, runs: list[int]
) -> None:
    tokens = token_ids(21, 16)
    activations = activations_of(tokens[:4], tokens[4:], batch_size=batch_size)
    activations.capture()
    width = activations.block_runner.resolved.model.config.hidden_size
    fitted = FittedCut(cut=Cut(start=2, end=2), delta=0.1 * torch.eye(width))
    single = [
        variant_losses(activations, Variant.of([fitted]), batches=[batch], positions=9)[0]
        for batch in activations.held_out_batches
    ]
    seen = sizes_of_runs(monkeypatch)
    losses: list[float] = []
    while len(losses) < 17:
        losses += next_losses(activations, fitted, first=len(losses), positions=9)
    assert losses == pytest.approx(single, rel=1e-5)
    assert seen == runs


def sizes_of_runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of sequences with each run of a variant."""
    seen, run = list[int](), Variant.run

    def noted(variant: Variant, block_runner: BlockRunner, stream: torch.Tensor, *, since: int) -> torch.Tensor:
        seen.append(len(stream))
        return run(variant, block_runner, stream, since=since)

    monkeypatch.setattr(Variant, "run", noted)
    return seen


PLAIN = Variant(removed=frozenset([2]))


def activations_of(fit: torch.Tensor, held_out: torch.Tensor, *, batch_size: int) -> Activations:
    return Activations(
        block_runner=BlockRunner(resolved=resolve(tiny_model())),
        fit=fit,
        held_out=held_out,
        batch_size=batch_size,
        advance=lambda _: None,
    )
