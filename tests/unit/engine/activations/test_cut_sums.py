"""One pass gives what many would: statistics, replays and cuts on a pruned prefix against brute force."""

import math
from contextlib import ExitStack

import pytest
import torch

from replaceme_core.engine.activations.capture import Activations
from replaceme_core.engine.activations.cut_sums import schedule
from replaceme_core.engine.methods.replay import variant_losses
from replaceme_core.engine.methods.task import Candidate
from replaceme_core.engine.methods.windows import choose_window, fit_cut
from replaceme_core.engine.model.block_runner import BlockRunner, Hook, predictions_of, record_values
from replaceme_core.engine.model.changes import Cut, FittedCut, Variant, fold, remove_blocks, run_pruned, windows
from replaceme_core.engine.numerics.solve import choose_ridge
from replaceme_core.families.resolve import resolve
from replaceme_core.request.defaults import FIRST_LOOK, SCREENING_RIDGE
from tests.fixtures.models.tasks import make_task
from tests.fixtures.models.tiny import BLOCKS, WIDTH, tiny_model, token_ids

FIT, HELD_OUT = token_ids(6, 32, seed=1), token_ids(8, 32, seed=2)


@pytest.fixture
def block_runner() -> BlockRunner:
    return BlockRunner(resolved=resolve(tiny_model()))


def activations_of(block_runner: BlockRunner, **fields: object) -> Activations:
    given = {"fit": FIT, "held_out": HELD_OUT, "batch_size": 4, "advance": lambda _: None, **fields}
    return Activations(block_runner=block_runner, **given)  # type: ignore[arg-type]


def test_windows_leave_block_0() -> None:
    assert [str(cut) for cut in windows(6, 2)] == ["1-2", "2-3", "3-4", "4-5"]
    assert windows(6, 5) == [Cut(start=1, end=5)]


def test_held_out_sequences_come_in_parts() -> None:
    """They alternate between two halves."""
    work = schedule(FIT, HELD_OUT, 4)
    assert [(len(batch.tokens), batch.held_out) for batch in work] == [(4, False), (2, False)] + [(1, True)] * 8
    assert [batch.second_half for batch in work] == [False] * 2 + [False, True] * 4
    assert torch.equal(torch.cat([batch.tokens for batch in work if batch.held_out]), HELD_OUT)


@torch.inference_mode()
def test_statistics_are_those_of_every_token(block_runner: BlockRunner) -> None:
    """Against streams from the model's own hidden states; the last window ends before the final norm (pitfall 1)."""
    fractions: list[float] = []
    statistics = activations_of(block_runner, advance=fractions.append).windows(windows(BLOCKS, 2))
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    for one in statistics:
        write, kept, end = hidden_streams(block_runner, one.cut)
        torch.testing.assert_close(one.fit.gram, (write.T @ write).double(), rtol=1e-4, atol=1e-2)
        torch.testing.assert_close(one.fit.cross, (write.T @ (end - kept)).double(), rtol=1e-4, atol=1e-2)
        assert one.fit.error == pytest.approx(float((end - kept).square().sum()), rel=1e-4)
        assert one.fit.tokens == FIT.numel()
        assert one.held_out.tokens == HELD_OUT.numel()


def hidden_streams(block_runner: BlockRunner, cut: Cut) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Write, kept and end (tokens, d) from one ordinary forward pass of the model."""
    blocks = block_runner.blocks
    with ExitStack() as stack:
        hooks = [
            stack.enter_context(record_values(Hook(module=module)))
            for module in (blocks[cut.anchor].mlp, blocks[cut.anchor], blocks[cut.end])
        ]
        block_runner.resolved.model(input_ids=FIT)
    write, kept, end = (seen[0].reshape(-1, WIDTH) for seen in hooks)
    return write, kept, end


@torch.inference_mode()
def test_nothing_after_the_last_wanted_block_is_run_and_no_logits(block_runner: BlockRunner) -> None:
    calls = dict.fromkeys(range(BLOCKS), 0)

    def count(index: int) -> None:
        calls[index] += 1

    for index, block in enumerate(block_runner.blocks):
        block.register_forward_hook(lambda _m, _i, _o, index=index: count(index))
    head: list[int] = []
    block_runner.resolved.model.lm_head.register_forward_hook(lambda *_: head.append(1))
    activations_of(block_runner, held_out=HELD_OUT[:2], batch_size=6).statistics(Cut(start=2, end=3))
    assert head == []
    assert calls == {0: 3, 1: 3, 2: 3, 3: 3, 4: 0, 5: 0}, "one run a batch of each block up to the end of the cut"


@torch.inference_mode()
def test_the_model_is_left_as_it_was(block_runner: BlockRunner) -> None:
    model = block_runner.resolved.model
    before = model(input_ids=FIT).logits
    activations_of(block_runner).windows(windows(BLOCKS, 2))
    assert block_runner.resolved.blocks is block_runner.blocks
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(model(input_ids=FIT).logits, before)


@torch.inference_mode()
def test_a_replay_costs_what_the_pruned_model_costs(block_runner: BlockRunner) -> None:
    activations = activations_of(block_runner)
    statistics, tokens = activations.windows(windows(BLOCKS, 2)), predictions_of(activations.held_out_tokens)
    replayed = []
    for one in statistics:
        fitted = fit_cut(one, ridge=0.1).from_all_tokens
        variant = Variant.of([fitted])
        replayed.append((fitted, sum(variant_losses(activations, variant)) / tokens))
    assert sum(activations.dense_losses()) / tokens == pytest.approx(whole_loss(tiny_model()), rel=1e-5)
    for fitted, loss in replayed:
        model = tiny_model()
        resolved = resolve(model)
        fold(resolved, fitted)
        remove_blocks(resolved, list(fitted.cut.blocks))
        assert loss == pytest.approx(whole_loss(model), rel=1e-4)


def whole_loss(model: object) -> float:
    return float(model(input_ids=HELD_OUT, labels=HELD_OUT).loss)  # type: ignore[operator]


@torch.inference_mode()
def test_a_later_cut_is_fitted_on_the_pruned_prefix_toward_the_dense_stream(block_runner: BlockRunner) -> None:
    first = FittedCut(cut=Cut(start=1, end=1), delta=torch.eye(WIDTH, dtype=torch.float64) * 0.2)
    statistics = activations_of(block_runner, batch_size=3).statistics(Cut(start=4, end=4), done=[first])
    dense = block_runner.enter(FIT)
    for block in range(5):
        dense = block_runner.run(block, dense)
    pruned, write = run_pruned(block_runner, block_runner.enter(FIT), done=[first], until=3)
    write, missing = write.reshape(-1, WIDTH), (dense - pruned).reshape(-1, WIDTH)
    torch.testing.assert_close(statistics.fit.cross, (write.T @ missing).double(), rtol=1e-4, atol=1e-2)


@torch.inference_mode()
def test_the_cut_of_least_loss_is_chosen_and_the_table_shows_why(block_runner: BlockRunner) -> None:
    activations = activations_of(block_runner)
    statistics = activations.windows(windows(BLOCKS, 2))
    table = table_of(block_runner, ridge=0.1, replays=9)
    assert [row.cut for row in table] == windows(BLOCKS, 2)
    finalists = sorted((row for row in table if row.held_out_loss is not None), key=lambda row: row.held_out_loss or 0)
    (chosen,) = (row for row in table if row.chosen)
    whole = {}
    for one in statistics:
        fitted = FittedCut(cut=one.cut, delta=fit_map_on_fit(one))
        losses = variant_losses(activations, Variant.of([fitted]))
        whole[one.cut] = sum(losses) / predictions_of(activations.held_out_tokens)
    assert len(finalists) == 4, "every candidate was replayed at least in part"
    assert chosen.held_out_loss == pytest.approx(whole[chosen.cut])
    assert whole[chosen.cut] <= sorted(whole.values())[1]


@torch.inference_mode()
def table_of(block_runner: BlockRunner, **method: object) -> list[Candidate]:
    task, _ = make_task(block_runner.resolved.model, remove=2, fit=FIT, held_out=HELD_OUT, method=method)
    return choose_window(task).candidates


def fit_map_on_fit(one: object) -> torch.Tensor:
    from replaceme_core.engine.numerics.solve import solve_delta

    return solve_delta(one.fit, ridge=0.1)  # type: ignore[attr-defined]


@torch.inference_mode()
def test_only_the_best_by_residual_are_replayed(block_runner: BlockRunner) -> None:
    statistics = activations_of(block_runner).windows(windows(BLOCKS, 2))
    table = table_of(block_runner, ridge=None, replays=2)
    replayed = {row.cut for row in table if row.held_out_loss is not None}
    residuals = {
        one.cut: choose_ridge(one.fit, one.held_out, ridges=(SCREENING_RIDGE, math.inf))[1] for one in statistics
    }
    assert replayed == set(sorted(residuals, key=lambda cut: residuals[cut])[:2])


@torch.inference_mode()
def test_a_cut_that_was_eliminated_is_shown_beside_the_chosen_one(block_runner: BlockRunner) -> None:
    """What it was not replayed on may be easier or harder to predict; that is no property of the cut."""
    activations = activations_of(block_runner)
    statistics = activations.windows(windows(BLOCKS, 2))
    table = table_of(block_runner, ridge=0.1, replays=9)
    (chosen,) = (row for row in table if row.chosen)
    deltas = {one.cut: FittedCut(cut=one.cut, delta=fit_map_on_fit(one)) for one in statistics}

    def losses(row: Candidate, count: int) -> float:
        variant = Variant.of([deltas[row.cut]])
        batches = activations.held_out_batches[:count]
        return sum(variant_losses(activations, variant, batches=batches))

    tokens = predictions_of(activations.held_out_tokens)
    left_out = [row for row in table if row.estimated]
    assert left_out, "all cuts were replayed on all batches: the test shows nothing"
    for row in left_out:
        shown = row.held_out_loss - losses(chosen, 8) / tokens  # type: ignore[operator]
        behind = [
            (losses(row, count) - losses(chosen, count)) / predictions_of(activations.held_out_tokens[:count])
            for count in range(FIRST_LOOK, 8)
        ]
        assert min(abs(shown - one) for one in behind) < 1e-6, "the difference on the batches that both have"
    assert {row.tokens for row in table} == {FIT.numel() + HELD_OUT.numel()}
