"""`refit`: which blocks go, what it is worth, and that it is never worse than nothing."""

import itertools
from collections.abc import Collection
from dataclasses import replace

import pytest
import torch

from replaceme_core.engine.methods.judge import Judge
from replaceme_core.engine.methods.refit import fit_scale, judge_refit, least, with_all_tokens
from replaceme_core.engine.methods.refit_choice import LEAST_TRIES, SetLosses, choose_one_by_one
from replaceme_core.engine.model.block_runner import BlockRunner, predictions_of, summed_losses
from replaceme_core.engine.model.changes import Cut, scale_final_norm
from replaceme_core.engine.numerics.solve import solve_delta
from replaceme_core.families.resolve import resolve
from replaceme_core.request.calibration import SELF_GENERATED
from replaceme_core.request.defaults import LEAST_FACTOR, MOST_FACTOR
from tests.fixtures.models.tasks import carry_out, make_task, mean_loss, operate, sampled
from tests.fixtures.models.tiny import BLOCKS, VARIANTS, Variant, tiny_model, token_ids

FIT, HELD_OUT = sampled(tiny_model(), 16, 24, seed=1), sampled(tiny_model(), 8, 24, seed=2)
METHOD = {"name": "refit", "ridge": 1e-2, "ridge_later": 0.1}


def loss_after(method: dict[str, object], **fields: object) -> float:
    task, _ = make_task(tiny_model(), fit=FIT, held_out=HELD_OUT, method=method, **fields)
    return mean_loss(operate(tiny_model(), carry_out(task)), HELD_OUT)


@torch.inference_mode()
def test_the_first_block_is_the_one_that_costs_least_after_its_fit() -> None:
    task, _ = make_task(tiny_model(), remove=1, fit=FIT, held_out=HELD_OUT, method=METHOD)
    pruning = carry_out(task)
    losses = {}
    for block in range(1, BLOCKS):
        model = tiny_model()
        moments = task.activations.statistics(Cut(start=block, end=block)).fit
        delta = solve_delta(moments, ridge=1e-2)
        with torch.no_grad():
            weight = model.model.layers[block - 1].mlp.down_proj.weight
            weight.add_((delta.T @ weight.double()).float())
            del model.model.layers[block]
        model.config.num_hidden_layers -= 1
        model.config.use_cache = False
        losses[block] = mean_loss(model, HELD_OUT)
    assert list(pruning.removed) == [min(losses, key=lambda block: losses[block])]
    table = {one.start: one.held_out_loss for one in pruning.candidates}
    assert LEAST_TRIES <= len(table) < len(losses), "not all are tried on everything"
    (best,) = pruning.removed
    found = table[best]
    assert found is not None
    assert abs(found - losses[best]) < 1e-4, "the one that goes is judged on all held-out tokens"


def test_blocks_need_not_be_neighbours() -> None:
    task, _ = make_task(tiny_model(), remove=3, fit=FIT, held_out=HELD_OUT, method=METHOD)
    pruning = carry_out(task)
    chosen = [one for one in pruning.candidates if one.chosen]
    assert [one.step for one in chosen] == [1, 2, 3]
    assert sorted(one.start for one in chosen) == list(pruning.removed)


def test_a_window_on_request() -> None:
    task, _ = make_task(tiny_model(), remove=3, fit=FIT, held_out=HELD_OUT, method={**METHOD, "selection": "window"})
    removed = list(carry_out(task).removed)
    assert removed == list(range(removed[0], removed[0] + 3))


def test_windows_in_several_places_on_request() -> None:
    task, _ = make_task(tiny_model(), remove=3, fit=FIT, held_out=HELD_OUT, method={**METHOD, "groups": 2})
    pruning = carry_out(task)
    chosen = [range(one.start, one.end + 1) for one in pruning.candidates if one.chosen]
    assert [len(cut) for cut in chosen] in ([1, 2], [2, 1])
    assert chosen[0].stop < chosen[1].start, "a kept block stands between them"
    assert [block for cut in chosen for block in cut] == list(pruning.removed)
    assert pruning.changes


def test_it_is_worth_more_than_maps_alone_and_these_more_than_nothing() -> None:
    for drop in ([2, 3], [1, 4]):
        refit = loss_after({**METHOD, "ridge": 0.1}, drop=drop)
        maps = loss_after({"name": "least_squares", "ridge": 1e-2}, drop=drop)
        plain = loss_after({"name": "drop"}, drop=drop)
        assert refit < maps < plain


def test_text_that_says_nothing_about_the_model_changes_nothing_for_the_worse() -> None:
    noise = token_ids(2, 24, seed=5)  # 48 tokens for 40 x 16 unknowns, and next to no ridge
    method = {"name": "refit", "ridge": 1e-7, "ridge_later": 1e-7}
    for drop in itertools.combinations(range(1, BLOCKS), 2):
        task, recorder = make_task(tiny_model(), fit=noise, held_out=HELD_OUT, method=method, drop=list(drop))
        pruning = carry_out(task)
        plain = loss_after({"name": "drop"}, drop=list(drop))
        assert mean_loss(operate(tiny_model(), pruning), HELD_OUT) <= plain + 1e-4
        if recorder.value("unscaled_held_out_loss") > recorder.value("plain_held_out_loss"):
            assert not pruning.changes
            return
    raise AssertionError("no fit was worse than nothing: the test shows nothing")


@torch.inference_mode()
def test_few_batches_are_spent_on_blocks_that_are_clearly_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    task, _ = make_task(tiny_model(), remove=2, fit=FIT, held_out=HELD_OUT, method=METHOD)
    spent, loss = list[int](), SetLosses.loss

    def counted(losses: SetLosses, removed: Collection[int], batch: int) -> float:
        spent.append(batch)
        return loss(losses, removed, batch)

    monkeypatch.setattr(SetLosses, "loss", counted)
    task.activations.capture()
    removed = choose_one_by_one(task).removed
    batches, tries = len(task.activations.held_out_batches), [*range(1, BLOCKS), *range(1, BLOCKS - 1)]
    assert batches > 1
    assert len(removed) == 2
    assert len(spent) < 0.9 * batches * len(tries), "the first guesses apart"


@torch.inference_mode()
def test_the_factor_of_the_final_norm_is_that_of_text_and_not_of_own_text() -> None:
    scales = []
    held_out = torch.cat([HELD_OUT[:4], token_ids(4, 24, seed=3)])  # nobody could foresee the last ones
    for other in ("text of somebody else", SELF_GENERATED):
        task, _ = make_task(tiny_model(), fit=FIT, held_out=held_out, method=METHOD, drop=[2, 3])
        sources = torch.tensor([0] * 4 + [1] * 4)
        marked = replace(task.activations, held_out_sources=sources, source_names=("text", other))
        scales.append(judge_refit(replace(task, activations=marked), [2, 3], []).scaled().final_scale)
    assert scales[1] > scales[0] + 0.02


@torch.inference_mode()
def test_held_out_tokens_judge_and_then_join_the_fit() -> None:
    judged, final = [], []
    for seed in (2, 7):
        held_out = sampled(tiny_model(), 8, 24, seed=seed)
        task, _ = make_task(tiny_model(), fit=FIT, held_out=held_out, method=METHOD, drop=[2, 3])
        judged.append(judge_refit(task, [2, 3], []).scaled())
        final.append(with_all_tokens(task, judged[-1]))
        assert final[-1].held_out_losses == judged[-1].held_out_losses, "the honest ones"
    for one, other in zip(judged[0].changes, judged[1].changes, strict=True):
        assert torch.equal(one.change, other.change)
    for one, other in zip(final[0].changes, final[1].changes, strict=True):
        assert not torch.equal(one.change, other.change)
    unseen = sampled(tiny_model(), 32, 24, seed=11)
    losses = [mean_loss(operate(tiny_model(), pruning), unseen) for pruning in (judged[0], final[0])]
    assert losses[1] < losses[0], "half as many tokens again"


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
    assert LEAST_FACTOR <= scale < 1
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
    assert least(lambda scale: (scale - 3) ** 2, known=4.0)[0] == MOST_FACTOR
    assert least(lambda scale: (scale - 0.2) ** 2, known=0.64)[0] == LEAST_FACTOR
    assert least(lambda _: 1.0, known=1.0)[0] == 1.0
