"""The greedy search against one that prunes and measures in earnest."""

import pytest
import torch

from replaceme_core.engine.methods import removal
from replaceme_core.engine.methods.removal import evidence
from replaceme_core.engine.methods.task import Pruning
from tests.fixtures.models.tasks import carry_out, make_task, mean_loss, operate, sampled
from tests.fixtures.models.tiny import BLOCKS, tiny_model, token_ids

METHOD = {"name": "perplexity_greedy"}


def brute_force(tokens: torch.Tensor, *, remove: int) -> list[tuple[int, float]]:
    """The blocks in the order in which they go, each with the loss without it."""
    removed: list[tuple[int, float]] = []
    while len(removed) < remove:
        gone = [block for block, _ in removed]
        losses = {
            block: mean_loss(operate(tiny_model(), Pruning(removed=sorted([*gone, block]))), tokens)
            for block in range(1, BLOCKS)
            if block not in gone
        }
        best = min(losses, key=lambda block: losses[block])
        removed.append((best, losses[best]))
    return removed


def test_each_step_takes_the_block_that_costs_least() -> None:
    model = tiny_model()
    fit, held_out = sampled(model, 2, 24, seed=1), sampled(model, 1, 24, seed=2)
    # A single batch of evidence, so that no round leaves a block behind.
    task, _ = make_task(model, remove=3, fit=fit[:0], held_out=held_out, method=METHOD)
    pruning = carry_out(task)
    expected = brute_force(held_out, remove=3)
    chosen = sorted((row for row in pruning.candidates if row.chosen), key=lambda row: row.step or 0)
    assert [(row.step, row.start) for row in chosen] == [(1, expected[0][0]), (2, expected[1][0]), (3, expected[2][0])]
    for row, (_, loss) in zip(chosen, expected, strict=True):
        assert row.held_out_loss == pytest.approx(loss, rel=1e-5)
    assert list(pruning.removed) == sorted(block for block, _ in expected)
    assert not pruning.folds
    assert not pruning.changes


def test_every_trial_is_in_the_table_and_the_last_round_decides() -> None:
    model = tiny_model()
    fit, held_out = sampled(model, 12, 24, seed=1), sampled(model, 4, 24, seed=2)
    task, recorder = make_task(model, remove=2, fit=fit, held_out=held_out, method=METHOD)
    pruning = carry_out(task)
    assert [(row.step, row.start) for row in pruning.candidates if row.step == 1] == [(1, b) for b in range(1, BLOCKS)]
    assert len([row for row in pruning.candidates if row.step == 2]) == BLOCKS - 2
    everything = torch.cat([held_out, fit])
    for row in pruning.candidates:
        if row.chosen and row.step == 1:
            loss = mean_loss(operate(tiny_model(), Pruning(removed=[row.start])), everything)
            assert row.held_out_loss == pytest.approx(loss, rel=1e-5)
    loss = mean_loss(operate(tiny_model(), pruning), held_out)
    assert recorder.value("result_held_out_loss") == pytest.approx(loss, rel=1e-5)


def test_fit_sequences_join_until_the_evidence_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    fit, held_out = token_ids(12, 24, seed=1), token_ids(4, 24, seed=2)
    task, _ = make_task(tiny_model(), fit=fit, held_out=held_out, method=METHOD)
    monkeypatch.setattr(removal, "EVIDENCE_TOKENS", 7 * 24 + 5)
    assert torch.equal(torch.cat(evidence(task)), torch.cat([held_out, fit[:3]]))
    monkeypatch.setattr(removal, "EVIDENCE_TOKENS", 5)
    assert torch.equal(torch.cat(evidence(task)), held_out)


def test_only_what_comes_after_a_block_is_run_for_its_sake() -> None:
    model = tiny_model()
    held_out = token_ids(1, 24)
    task, _ = make_task(model, remove=1, fit=held_out[:0], held_out=held_out, method=METHOD)
    calls = dict.fromkeys(range(BLOCKS), 0)

    def count(index: int) -> None:
        calls[index] += 1

    for index, block in enumerate(task.block_runner.blocks):
        block.register_forward_hook(lambda _m, _i, _o, index=index: count(index))
    pruning = carry_out(task)
    for block in pruning.removed:  # the result is measured once more, without it
        calls[block] += 1
    # once for the walk (not the last), once for each block before it that is tried, once for the result
    assert calls == {0: 2, 1: 2, 2: 3, 3: 4, 4: 5, 5: 5}
