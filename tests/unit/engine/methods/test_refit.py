"""`refit`: which blocks go, what it is worth, and that it is never worse than nothing."""

import itertools
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import pytest
import torch

from replaceme_core.engine.activations.cut_sums import Batch
from replaceme_core.engine.activations.tensor_store import activation_bytes
from replaceme_core.engine.methods.judge import Judge
from replaceme_core.engine.methods.refit import fit_scale, judge_refit, least, with_all_tokens
from replaceme_core.engine.methods.refit_choice import (
    LEAST_TRIES,
    BlockChoice,
    RunByRun,
    SetLosses,
    batches_for_choice,
    divisions,
    early_blocks,
    for_choice,
    keeps_all,
    neighbours,
)
from replaceme_core.engine.methods.replay import variant_losses
from replaceme_core.engine.methods.task import Task
from replaceme_core.engine.model.block_runner import BlockRunner, predictions_of, summed_losses
from replaceme_core.engine.model.changes import Cut, runs, scale_final_norm
from replaceme_core.engine.numerics.solve import solve_delta
from replaceme_core.errors import CalibrationTooSmall
from replaceme_core.families.resolve import resolve
from replaceme_core.request.calibration import SELF_GENERATED
from replaceme_core.request.defaults import LEAST_FACTOR, MOST_FACTOR
from tests.fixtures.models.recorder import Recorder
from tests.fixtures.models.tasks import carry_out, make_task, mean_loss, operate, sampled
from tests.fixtures.models.tiny import BLOCKS, BY_NAME, VARIANTS, Variant, tiny_model, token_ids

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
    refit = loss_after({**METHOD, "ridge": 0.1}, drop=[1, 4])
    maps = loss_after({"name": "least_squares", "ridge": 1e-2}, drop=[1, 4])
    plain = loss_after({"name": "drop"}, drop=[1, 4])
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


GEMMA = BY_NAME["gemma2"]
PLAIN = BY_NAME["opt-plain"]


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


CHOSEN = 2


def with_activations(remove: int = CHOSEN, *, blocks: int = BLOCKS) -> Task:
    model = tiny_model(num_hidden_layers=blocks)
    task, _ = make_task(model, remove=remove, fit=FIT, held_out=HELD_OUT, method={"name": "refit"})
    task.activations.capture()
    return task


def choose_several(task: Task) -> BlockChoice:
    """Of two ways to divide the blocks the one in several runs."""
    return RunByRun(task=task).choose(divisions(task.remove)[0], advance=lambda _: None)


def costs(monkeypatch: pytest.MonkeyPatch, cost: "dict[int, float]") -> None:
    """The loss grows by these parts of the dense model's for each removed block."""

    def losses(of: SetLosses, removed: Collection[int], numbers: Collection[int], _: int | None) -> list[float]:
        dense = dict(zip(of._numbers, of.judge.dense, strict=True))
        return [dense[number] * (1 + sum(cost.get(block, 1.0) for block in removed)) for number in numbers]

    monkeypatch.setattr(SetLosses, "_losses", losses)


@pytest.mark.parametrize("blocks", [2, 12, 30])
def test_a_third_of_the_kept_blocks_follows_and_enough_may_go(blocks: int) -> None:
    for remove in range(1, blocks):
        found = early_blocks(blocks, remove=remove)
        assert 1 <= found.start <= max(1, blocks // 10)
        assert len(found) >= remove
        assert blocks - found.stop == (blocks - remove) // 3


@pytest.mark.parametrize("remove", [1, 2, 7, 8, 39])
def test_runs_have_about_one_length_and_are_few(remove: int) -> None:
    lengths, *others = divisions(remove)
    assert others == ([[remove]] if remove > 1 else []), "and one run"
    assert sum(lengths) == remove
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] - lengths[-1] <= 1
    assert len(lengths) <= max(2, remove // 4)


@torch.inference_mode()
@pytest.mark.parametrize(("blocks", "remove"), [(6, 1), (6, 3), (9, 8), (2, 1)])
def test_as_many_blocks_go_as_are_asked_for(blocks: int, remove: int) -> None:
    """Also where what is left in one piece is shorter than a run."""
    found = choose_several(with_activations(remove, blocks=blocks))
    assert found.removed == sorted(set(found.removed))
    assert len(found.removed) == remove
    assert set(found.removed) <= set(early_blocks(blocks, remove=remove))
    count = len(divisions(remove)[0])
    steps = [row.step for row in found.candidates]
    assert {*range(1, count + 1)} <= {*steps} if count > 1 else {*steps} == {None}
    chosen = [row for row in found.candidates if row.chosen]
    assert sorted({block for row in chosen for block in row.cut.blocks}) == found.removed
    assert len(found.losses) == 8


@torch.inference_mode()
def test_a_cheap_block_among_costly_ones_does_not_lead_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Removed one at a time, 9 would go first, and then its neighbours."""
    costs(monkeypatch, {9: 0.001, **dict.fromkeys((2, 3, 4, 5, 6, 7), 0.1)})
    found = choose_several(with_activations(6, blocks=18))
    assert found.removed == [2, 3, 4, 5, 6, 7]


@torch.inference_mode()
def test_one_run_is_the_one_that_costs_least(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last ones are cheaper still; blocks that no others follow stay."""
    costs(monkeypatch, {**dict.fromkeys((4, 5, 6, 7, 8, 9), 0.01), **dict.fromkeys(range(12, 18), 0.001)})
    by_run = RunByRun(task=with_activations(6, blocks=18))
    done = list[float]()
    found = by_run.choose([6], advance=done.append)
    assert found.removed == [4, 5, 6, 7, 8, 9]
    assert {row.step for row in found.candidates} == {None}, "one step is no order"
    assert done == sorted(done)
    assert done[-1] == 1.0


@torch.inference_mode()
def test_runs_of_unequal_length_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three and three are where the choice begins: 2-5 and 9, 10 cost least."""
    costs(monkeypatch, dict.fromkeys((2, 3, 4, 5, 9, 10), 0.01))
    found = choose_several(with_activations(6, blocks=18))
    assert found.removed == [2, 3, 4, 5, 9, 10]
    chosen = [row for row in found.candidates if row.chosen]
    assert [(row.step, row.start, row.end) for row in chosen] == [(3, 2, 5), (3, 9, 10)]
    assert {row.step for row in found.candidates} == {1, 2, 3}
    assert chosen[-1].held_out_loss == pytest.approx(SetLosses(with_activations(6, blocks=18)).judge.mean(found.losses))


@torch.inference_mode()
def test_no_more_runs_are_tried_where_the_guesses_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    costs(monkeypatch, {block: block / 100 for block in range(18)})
    found = choose_several(with_activations(2, blocks=18))
    assert found.removed == [1, 2]
    assert [row.step for row in found.candidates] == [1] * 4 + [2] * 4


@torch.inference_mode()
def test_it_looks_at_the_beginning_of_sequences_and_gives_the_losses_on_the_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("replaceme_core.engine.methods.refit_choice.RUN_POSITIONS", 12)
    task = with_activations()
    looked: list[int] = []
    loss = SetLosses.loss

    def noted(losses: SetLosses, removed: Collection[int], batch: int) -> float:
        looked.append(losses.judge.predictions[batch])
        return loss(losses, removed, batch)

    monkeypatch.setattr(SetLosses, "loss", noted)
    found = choose_several(task)
    assert set(looked) == {11}
    assert all(row.estimated for row in found.candidates)
    assert found.losses == pytest.approx(SetLosses(task).whole(found.removed))


@torch.inference_mode()
def test_it_looks_at_some_sequences_of_a_long_source_and_gives_the_losses_on_all() -> None:
    task, _ = make_task(tiny_model(), remove=CHOSEN, fit=FIT, held_out=HELD_OUT, method={"name": "refit"})
    sources = torch.tensor([0] * 6 + [1] * 2)
    activations = replace(task.activations, held_out_sources=sources, source_names=("long", "short"), batch_size=1)
    task = replace(task, activations=activations)
    activations.capture()
    found = choose_several(task)
    assert all(row.estimated for row in found.candidates)
    assert len(found.losses) == 8
    assert found.losses == pytest.approx(SetLosses(task).whole(found.removed))


def task_of(method: dict[str, object]) -> tuple[Task, Recorder]:
    return make_task(tiny_model(), remove=2, fit=FIT, held_out=HELD_OUT, method=method)


def room_for(monkeypatch: pytest.MonkeyPatch, task: Task, *, sequences: int) -> None:
    size = activation_bytes(task.block_runner, tokens=sequences * FIT.shape[1])
    monkeypatch.setattr("replaceme_core.engine.methods.refit_choice.CHOICE_STREAM_BYTES", size)


@pytest.mark.parametrize(
    ("sources", "size", "expected"),
    [
        ([0] * 8, 1, [0] * 8),
        ([0] * 6 + [1] * 2, 1, [0] * 4 + [1] * 2),
        ([0] * 6 + [1] * 2, 2, [0] * 2 + [1] * 2),
    ],
)
def test_blocks_are_chosen_on_as_many_sequences_of_each_source(
    sources: list[int], size: int, expected: list[int]
) -> None:
    """Four, or as many as the one that has fewest."""
    task, _ = task_of({"name": "auto"})
    batches = [Batch(tokens=HELD_OUT[:size], held_out=True, source=source) for source in sources]
    task.activations.batches = [*task.activations.batches[: task.activations.held_out_batches.start], *batches]
    chosen = [task.activations.batches[number] for number in batches_for_choice(task)]
    assert [batch.source for batch in chosen] == expected
    assert all(batch.held_out for batch in chosen)


def test_as_many_sequences_as_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    task, _ = task_of({"name": "refit"})
    assert for_choice(task) is task
    room_for(monkeypatch, task, sequences=24)
    assert for_choice(task) is task
    room_for(monkeypatch, task, sequences=12)
    part = for_choice(task)
    assert torch.equal(part.tokens.fit, FIT[:8])
    assert torch.equal(part.tokens.held_out, HELD_OUT[:4])


def test_too_small_a_part_for_a_map_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    short = {"fit": FIT[:, :8], "held_out": HELD_OUT[:, :8]}  # one sequence is less than the width of 16
    task, _ = make_task(tiny_model(), remove=2, method={"name": "refit"}, **short)
    room_for(monkeypatch, task, sequences=0)
    with pytest.raises(CalibrationTooSmall):
        for_choice(task)


def test_refit_chooses_on_the_part_and_fits_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    method = {"name": "refit", "ridge": 1e-2, "ridge_later": 0.1}
    task, recorder = task_of(method)
    room_for(monkeypatch, task, sequences=12)
    found = carry_out(task)
    assert recorder.value("choice_tokens") == 12 * 24
    assert not task.activations.complete, "the streams of all tokens are nowhere"
    named, _ = make_task(tiny_model(), fit=FIT, held_out=HELD_OUT, method=method, drop=list(found.removed))
    whole = carry_out(named)
    for one, other in zip(found.changes, whole.changes, strict=True):
        assert torch.equal(one.change, other.change)
    blocks = len(task.block_runner.blocks)
    assert task.activations.dense_block_runs > named.activations.dense_block_runs >= blocks, (
        "the part's pass is counted"
    )


def test_auto_keeps_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    task, recorder = task_of({"name": "auto"})
    room_for(monkeypatch, task, sequences=12)
    assert not keeps_all(task)
    found = carry_out(task)
    assert not task.activations.complete
    losses = recorder.values("held_out_loss")
    assert len(losses) in (3, 5)
    assert mean_loss(operate(tiny_model(), found), HELD_OUT) <= min(losses[0], losses[-1]) + 1e-3


@torch.inference_mode()
def test_batches_that_will_be_asked_for_are_run_together(monkeypatch: pytest.MonkeyPatch) -> None:
    task, _ = make_task(tiny_model(), remove=2, fit=FIT, held_out=HELD_OUT, method={"name": "refit"})
    task.activations.capture()
    losses = SetLosses(task)
    apart = losses.whole([2])
    asked = list[int]()

    def noted(*given: Any, batches: list[int], **named: Any) -> list[float]:
        asked.append(len(batches))
        return variant_losses(*given, batches=batches, **named)

    monkeypatch.setattr("replaceme_core.engine.methods.refit_choice.variant_losses", noted)
    assert [losses.loss([2], batch) for batch in range(8)] == pytest.approx(apart)
    assert asked == [4, 4], "nothing is left out before four batches of a source"


@pytest.mark.parametrize("removed", [[3, 4, 5, 6, 12, 13, 14, 15], [4, 9], [21, 22]])
def test_one_block_comes_back_and_another_goes(removed: list[int]) -> None:
    allowed = range(3, 23)
    found = neighbours(removed, allowed=allowed)
    assert found
    if len(removed) == 8:
        assert all({4, 5, 13, 14} <= set(blocks) for blocks in found), "the middle of a run stays away"
    for blocks in found:
        assert len(blocks) == len(set(blocks)) == len(removed)
        assert len(set(blocks) - set(removed)) == 1
        assert set(blocks) <= set(allowed)
        assert len(runs(blocks)) <= len(runs(removed))
