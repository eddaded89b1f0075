"""Methods that remove blocks and compensate for nothing, and the one that merges them."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from transformers import PreTrainedModel

from replaceme_core.engine.methods import removal
from replaceme_core.engine.methods.removal import evidence
from replaceme_core.engine.methods.task import Pruning
from replaceme_core.engine.model.changes import windows
from replaceme_core.errors import InvalidInput
from tests.fixtures.models.activations import count_runs, dense_pass
from tests.fixtures.models.tasks import carry_out, make_task, mean_loss, operate, sampled
from tests.fixtures.models.tiny import BLOCKS, BY_NAME, tiny_model, token_ids

FIT, HELD_OUT = token_ids(6, 24, seed=1), token_ids(4, 24, seed=2)
METHOD = {"name": "drop"}


@torch.inference_mode()
def test_the_window_of_least_distance_goes() -> None:
    task, recorder = make_task(tiny_model(), remove=2, fit=FIT, held_out=HELD_OUT, method=METHOD)
    expected = {cut: task.activations.statistics(cut).angle.value for cut in windows(BLOCKS, 2)}
    pruning = carry_out(task)
    assert {row.cut: row.distance for row in pruning.candidates} == pytest.approx(expected)
    nearest = min(expected, key=lambda cut: expected[cut])
    assert list(pruning.removed) == list(nearest.blocks)
    assert [row.cut for row in pruning.candidates if row.chosen] == [nearest]
    assert not pruning.folds
    pruned = operate(tiny_model(), pruning)
    assert recorder.value("result_held_out_loss") == pytest.approx(mean_loss(pruned, HELD_OUT), rel=1e-5)


def test_named_blocks_are_measured_by_run() -> None:
    pruning = carry_out(make_task(tiny_model(), fit=FIT, held_out=HELD_OUT, drop=[1, 3, 4], method=METHOD)[0])
    assert [(row.cut.start, row.cut.end, row.chosen) for row in pruning.candidates] == [(1, 1, True), (3, 4, True)]


INFLUENCE = {"name": "block_influence"}


def influences(model: PreTrainedModel, tokens: torch.Tensor, *, sink: int = -1) -> list[float]:
    """1 - mean cos across each block, over all tokens but those with the id `sink`."""
    streams, _ = dense_pass(model, tokens)
    flat = [stream.flatten(0, 1)[tokens.flatten() != sink] for stream in streams]
    return [1 - float(torch.nn.functional.cosine_similarity(*ends).mean()) for ends in pairwise(flat)]


def test_the_blocks_of_least_influence_go_wherever_they_stand() -> None:
    model = tiny_model()
    expected = influences(model, torch.cat([FIT, HELD_OUT]))
    task, recorder = make_task(model, remove=3, fit=FIT, held_out=HELD_OUT, method=INFLUENCE)
    pruning = carry_out(task)
    assert [row.cut.start for row in pruning.candidates] == list(range(1, BLOCKS))
    for row in pruning.candidates:
        assert row.influence == pytest.approx(expected[row.cut.start], rel=1e-4)
    assert list(pruning.removed) == sorted(sorted(range(1, BLOCKS), key=lambda block: expected[block])[:3])
    assert not pruning.folds
    assert not pruning.changes
    pruned = operate(tiny_model(), pruning)
    assert recorder.value("result_held_out_loss") == pytest.approx(mean_loss(pruned, HELD_OUT), rel=1e-5)


def test_named_blocks_go_where_a_pattern_is_kept() -> None:
    """Though a step on the way to them would break it."""
    task, _ = make_task(tiny_model(), fit=FIT, held_out=HELD_OUT, drop=[2, 3], method=INFLUENCE)
    pattern = replace(task.activations, may_go=lambda removed: len(removed) % 2 == 0)
    assert list(carry_out(replace(task, activations=pattern)).removed) == [2, 3]


def test_block_0_stays_though_its_influence_is_least() -> None:
    model = tiny_model()
    with torch.no_grad():
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            model.model.layers[0].get_submodule(name).weight.mul_(1e-3)
    assert min(influences(model, FIT)) == influences(model, FIT)[0]
    assert 0 not in carry_out(make_task(model, remove=4, fit=FIT, held_out=HELD_OUT, method=INFLUENCE)[0]).removed


def test_tokens_with_massive_activations_do_not_count() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.model.embed_tokens.weight[7].mul_(1e4)
    fit = FIT.clone()
    fit[:, 0] = 7
    expected = influences(model, torch.cat([fit, HELD_OUT]), sink=7)
    pruning = carry_out(make_task(model, fit=fit, held_out=HELD_OUT, method=INFLUENCE)[0])
    for row in pruning.candidates:
        assert row.influence == pytest.approx(expected[row.cut.start], rel=1e-3)


GREEDY = {"name": "perplexity_greedy"}


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
    task, _ = make_task(model, remove=3, fit=fit[:0], held_out=held_out, method=GREEDY)
    pruning = carry_out(task)
    expected = brute_force(held_out, remove=3)
    chosen = sorted((row for row in pruning.candidates if row.chosen), key=lambda row: row.step or 0)
    assert [(row.step, row.cut.start) for row in chosen] == [(step, expected[step - 1][0]) for step in (1, 2, 3)]
    for row, (_, loss) in zip(chosen, expected, strict=True):
        assert row.held_out_loss == pytest.approx(loss, rel=1e-5)
    assert list(pruning.removed) == sorted(block for block, _ in expected)
    assert not pruning.folds
    assert not pruning.changes


def test_a_block_without_which_there_are_no_numbers_stays() -> None:
    """Block 1 removes what 0 has written; with what 2 writes that would be more than float16 holds."""
    model = tiny_model(BY_NAME["llama-bias"])
    for block, value in enumerate((60_000.0, -60_000.0, 60_000.0)):
        for parameter in model.get_submodule(f"model.layers.{block}.mlp.down_proj").parameters():
            parameter.data[0] = value if parameter.ndim == 1 else 0
    pruning = carry_out(make_task(model.half(), fit=FIT, held_out=HELD_OUT, method=GREEDY)[0])
    assert pruning.candidates[0].held_out_loss == math.inf
    assert list(pruning.removed) != [1]


def test_every_trial_is_in_the_table_and_the_last_round_decides() -> None:
    model = tiny_model()
    fit, held_out = sampled(model, 12, 24, seed=1), sampled(model, 4, 24, seed=2)
    task, recorder = make_task(model, remove=2, fit=fit, held_out=held_out, method=GREEDY)
    pruning = carry_out(task)
    assert [row.cut.start for row in pruning.candidates if row.step == 1] == list(range(1, BLOCKS))
    assert len([row for row in pruning.candidates if row.step == 2]) == BLOCKS - 2
    everything = torch.cat([held_out, fit])
    for row in pruning.candidates:
        if row.chosen and row.step == 1:
            loss = mean_loss(operate(tiny_model(), Pruning(removed=[row.cut.start])), everything)
            assert row.held_out_loss == pytest.approx(loss, rel=1e-5)
    loss = mean_loss(operate(tiny_model(), pruning), held_out)
    assert recorder.value("result_held_out_loss") == pytest.approx(loss, rel=1e-5)


def test_fit_sequences_join_until_the_evidence_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    fit, held_out = token_ids(12, 24, seed=1), token_ids(4, 24, seed=2)
    task, _ = make_task(tiny_model(), fit=fit, held_out=held_out, method=GREEDY)
    monkeypatch.setattr(removal, "EVIDENCE_TOKENS", 7 * 24 + 5)
    assert torch.equal(torch.cat(evidence(task)), torch.cat([held_out, fit[:3]]))
    monkeypatch.setattr(removal, "EVIDENCE_TOKENS", 5)
    assert torch.equal(torch.cat(evidence(task)), held_out)


def test_only_what_comes_after_a_block_is_run_for_its_sake() -> None:
    model = tiny_model()
    held_out = token_ids(1, 24)
    task, _ = make_task(model, remove=1, fit=held_out[:0], held_out=held_out, method=GREEDY)
    calls = count_runs(task.block_runner.blocks)
    pruning = carry_out(task)
    for block in pruning.removed:  # the result is measured once more, without it
        calls[block] += 1
    # once for the walk (not the last), once for each block before it that is tried, once for the result
    assert calls == [2, 2, 3, 4, 5, 5]


MERGE = {"name": "merge"}


def test_several_blocks_and_several_runs() -> None:
    pruning = carry_out(make_task(tiny_model(), fit=FIT, held_out=HELD_OUT, drop=[1, 3, 4], method=MERGE)[0])
    blocks = tiny_model().model.layers
    result = operate(tiny_model(), pruning)
    for new, (anchor, gone) in enumerate([(0, [1]), (2, [3, 4])]):
        theta = [block.mlp.up_proj.weight.double() for block in blocks]
        expected = theta[anchor] + sum(theta[block] - theta[anchor] for block in gone)
        torch.testing.assert_close(result.model.layers[new].mlp.up_proj.weight.double(), expected, rtol=1e-5, atol=1e-6)


def test_the_window_of_least_loss_is_chosen() -> None:
    model = tiny_model()
    fit, held_out = sampled(model, 6, 24, seed=1), sampled(model, 1, 24, seed=2)
    method = {**MERGE, "replays": 9}
    pruning = carry_out(make_task(model, remove=2, fit=fit, held_out=held_out, method=method)[0])
    losses = {}
    for cut in windows(BLOCKS, 2):
        task, recorder = make_task(tiny_model(), fit=fit, held_out=held_out, drop=list(cut.blocks), method=MERGE)
        losses[cut] = mean_loss(operate(tiny_model(), carry_out(task)), held_out)
        assert recorder.value("result_held_out_loss") == pytest.approx(losses[cut], rel=1e-4)
    for row in pruning.candidates:
        assert row.held_out_loss == pytest.approx(losses[row.cut], rel=1e-4)
    (chosen,) = (row for row in pruning.candidates if row.chosen)
    assert losses[chosen.cut] == min(losses.values())


def test_blocks_of_different_kinds_are_not_merged() -> None:
    mixed = BY_NAME["qwen3-moe-mixed"]  # experts in blocks 1 and 3, dense otherwise, sliding from block 3 on
    with pytest.raises(InvalidInput, match="blocks 1 to 2 are not of one kind") as caught:
        carry_out(make_task(tiny_model(mixed), fit=FIT, held_out=HELD_OUT, drop=[2], method=MERGE)[0])
    assert caught.value.field == "drop"
    pruning = carry_out(make_task(tiny_model(mixed), remove=1, fit=FIT, held_out=HELD_OUT, method=MERGE)[0])
    assert [row.cut.start for row in pruning.candidates] == [5], "4 and 5 are both dense and sliding"
    with pytest.raises(InvalidInput, match="no 4 neighbouring blocks"):
        carry_out(make_task(tiny_model(mixed), remove=3, fit=FIT, held_out=HELD_OUT, method=MERGE)[0])


def test_the_screen_is_by_distance() -> None:
    method = {**MERGE, "replays": 2}
    pruning = carry_out(make_task(tiny_model(), remove=2, fit=FIT, held_out=HELD_OUT, method=method)[0])
    near = sorted(pruning.candidates, key=lambda row: row.distance or 0.0)
    assert [row.held_out_loss is not None for row in near] == [True, True, False, False]
