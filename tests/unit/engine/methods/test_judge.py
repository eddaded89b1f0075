"""Losses beside those of the dense model, the tournament that they decide, and the sequences that they are of."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from replaceme_core.engine.methods.judge import Judge, accepted_scale, tournament
from replaceme_core.engine.methods.replay import held_out_judge, next_losses, variant_losses
from replaceme_core.engine.model.block_runner import BlockRunner
from replaceme_core.engine.model.changes import Cut, FittedCut, Variant
from replaceme_core.engine.text.tokens import REPEATED
from tests.fixtures.models.activations import activations_of
from tests.fixtures.models.tiny import tiny_model, token_ids

BEST = [100.0, 120.0, 90.0, 110.0]


def judge(*, sources: list[int], dense: float = 50.0) -> Judge:
    return Judge(sources=sources, predictions=[10] * len(sources), dense=[dense] * len(sources), names=("a", "b"))


@pytest.mark.parametrize(
    ("losses", "worse"),
    [
        ([105.0, 125.5, 94.8, 115.1], True),  # by about five in every batch
        ([103.0, 117.5, 94.0, 109.0], False),  # now more, now less
        (BEST, False),
        ([101.0, 121.0], True),  # left out before
    ],
)
def test_a_difference_counts_when_it_is_more_than_chance(losses: list[float], worse: bool) -> None:
    assert judge(sources=[0] * 4).is_worse(losses, than=BEST) is worse


def test_a_single_batch_decides_by_itself() -> None:
    assert judge(sources=[0]).is_worse([2.0], than=[1.0])
    assert not judge(sources=[0]).is_worse([1.0], than=[1.0])


def test_the_worst_source_counts_twice() -> None:
    """A gain on one kind of text does not pay for a loss on another."""
    two = judge(sources=[0, 1, 0, 1])
    even, lopsided = [60.0] * 4, [50.0, 70.0, 50.0, 70.0]
    assert two.mean(even) == two.mean(lopsided)
    assert two.score(even) < two.score(lopsided)
    assert two.score(lopsided) == pytest.approx(math.log(70 / 50) / 2 + math.log(70 / 50))
    assert two.by_source(lopsided, beside=lopsided) == (("a", 5.0), ("b", 7.0))
    assert two.by_source([60.0, 70.0], beside=lopsided) == (("a", 6.0), ("b", 7.0))


def test_a_probe_is_shown_and_does_not_count() -> None:
    sources, predictions, dense = [1, 0, 1, 0], [20, 10, 20, 10], [10.0, 50.0, 10.0, 50.0]
    probed = Judge(sources=sources, predictions=predictions, dense=dense, names=("a", "b"), probes=[1])
    alone = Judge(sources=[0, 0], predictions=[10, 10], dense=[50.0, 50.0])
    best, other = [60.0, 70.0, 60.0, 71.0], [10.0, 75.0, 10.0, 77.0]
    assert probed.score(best) == alone.score([70.0, 71.0])
    assert probed.mean(best) == alone.mean([70.0, 71.0])
    assert probed.is_worse(other, than=best) and alone.is_worse([75.0, 77.0], than=[70.0, 71.0])
    assert probed.by_source(best, beside=best) == (("a", 7.05), ("b", 3.0))
    assert probed.counts == {0: 2}
    assert (probed.score(best[:1]), probed.mean(best[:1])) == (0, 0), "a probe only"
    assert not probed.is_worse(other[:1], than=best[:1])


def test_the_heaviest_source_counts_twice_whichever_is_worst() -> None:
    usual, heavy = judge(sources=[0, 1]), replace(judge(sources=[0, 1]), heaviest=1)
    one, other = [60.0, 55.0], [70.0, 54.0]
    assert usual.score(one) < usual.score(other)
    assert heavy.score(one) == pytest.approx((math.log(60 / 50) + math.log(55 / 50)) / 2 + math.log(55 / 50))
    one, other = [70.0, 54.0], [68.0, 56.0]
    assert usual.score(other) < usual.score(one)
    assert heavy.score(one) < heavy.score(other)
    assert heavy.score(one[:1]) == usual.score(one[:1]), "nothing of it has been seen"


def test_a_source_that_is_hard_to_predict_weighs_no_more() -> None:
    easy_and_hard = Judge(sources=[0, 1], predictions=[10, 10], dense=[10.0, 1000.0])
    assert easy_and_hard.score([20.0, 1000.0]) == pytest.approx(easy_and_hard.score([10.0, 2000.0]))


@given(st.lists(st.floats(0.5, 2.0), min_size=4, max_size=12))
def test_with_one_source_the_score_orders_like_the_loss(factors: list[float]) -> None:
    one = judge(sources=[0] * len(factors))
    losses, other = [50 * factor for factor in factors], [50 * factor for factor in [*factors[::-1][1:], 1.0]]
    if abs(sum(losses) - sum(other)) > 1e-6:
        assert (one.score(losses) < one.score(other)) == (sum(losses) < sum(other))


def test_nothing_is_clearly_worse_before_every_source_was_seen_several_times() -> None:
    sources = [0, 1, 0, 0, 0, 1, 0, 1]
    two = judge(sources=sources)
    worse, best = [70.0 + number % 2 for number in range(8)], [60.0] * 8
    verdicts = [two.is_clearly_worse(worse[:seen], than=best[:seen]) for seen in range(1, 9)]
    assert verdicts == [False] * 7 + [True], "the three batches of the second source are all that it has"


def test_losses_that_ended_early_are_compared_where_both_are_known() -> None:
    four = judge(sources=[0] * 4)
    assert four.paired_mean([60.0, 40.0], beside=[50.0, 30.0, 90.0, 110.0]) == 8.0, "worse by 1, on tokens of 7"
    assert four.paired_mean([60.0, 40.0], beside=[50.0, 30.0]) == 5.0


JUDGE = Judge(sources=[0] * 8, predictions=[10] * 8, dense=[50.0] * 8)


def judged(losses: dict[str, list[float]]) -> tuple[str, dict[str, list[float]]]:
    return tournament(
        list(losses),
        judge=JUDGE,
        loss=lambda one, batch: losses[one][batch],
        rank={one: number for number, one in enumerate(losses)},
        advance=lambda fraction: None,
    )


def test_the_last_two_meet_until_there_is_no_doubt() -> None:
    noise = [0.01, -0.01, 0.02, 0.0, -0.02, 0.01, 0.0, -0.01]
    best = [100.0 + one for one in noise]
    winner, seen = judged({"worse": [101.0] * 8, "best": best})
    assert winner == "best"
    assert len(seen["worse"]) == 4
    assert seen["best"] == best  # the winner's loss is comparable with anything


def test_the_rank_decides_between_near_ones_only() -> None:
    """Both differ by less than two standard errors; two in a hundred are too many for the rank to decide."""
    best = [100.0, 120.0, 90.0, 110.0, 100.0, 120.0, 90.0, 110.0]
    swings = [9.0, -5.0, 7.0, -3.0, 6.0, -4.0, 8.0, -2.0]  # 2 on average, standard error 2.1
    for part, winner in ((0.25, "ranked first"), (1.0, "best")):
        first = [one + part * by for one, by in zip(best, swings, strict=True)]
        assert judged({"ranked first": first, "best": best})[0] == winner


def test_near_ones_are_seen_on_everything() -> None:
    near = [100.0, 101.0] * 4
    winner, seen = judged({"first": near, "second": near[::-1]})
    assert winner == "first"  # by rank
    assert [len(losses) for losses in seen.values()] == [8, 8]


@pytest.mark.parametrize(("change", "scale", "looked_at"), [(-1.0, 1.0, 4), (0.0, 0.0, 8), (1.0, 0.0, 8)])
def test_a_change_earns_its_scale_with_no_more_looks_than_needed(change: float, scale: float, looked_at: int) -> None:
    def loss_at(at: float) -> Callable[[int], float]:
        return lambda batch: 100.0 + batch + at * change

    known = [loss_at(1.0)(batch) for batch in range(8)]
    found, scaled, none = accepted_scale(loss_at, judge=JUDGE, known=known)
    assert found == scale
    assert len(none) == looked_at
    assert len(scaled) == 8


def test_a_window_that_is_good_at_one_text_alone_loses() -> None:
    two = Judge(sources=[0, 1] * 4, predictions=[10] * 8, dense=[50.0] * 8)
    losses = {"at home": [55.0, 90.0] * 4, "everywhere": [65.0, 66.0] * 4}
    winner, _ = tournament(
        list(losses), judge=two, loss=lambda one, batch: losses[one][batch], advance=lambda fraction: None
    )
    assert winner == "everywhere"


@torch.inference_mode()
def test_repeated_passages_count_only_where_a_refit_follows() -> None:
    tokens = token_ids(8, 16)
    activations = activations_of(
        tiny_model(),
        tokens[:4],
        tokens[4:],
        batch_size=2,
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
    activations = activations_of(tiny_model(), tokens[:4], tokens[4:], batch_size=1)
    every, some = held_out_judge(activations), held_out_judge(activations, batches=activations.held_out_batches[2:5])
    assert some.dense == every.dense[2:5]
    assert some.batches == 3


@torch.inference_mode()
@pytest.mark.parametrize(("batch_size", "runs"), [(1, [1] * 17), (4, [4, 4, 4, 4, 1])])
def test_a_cut_is_replayed_on_small_batches_together(
    monkeypatch: pytest.MonkeyPatch, batch_size: int, runs: list[int]
) -> None:
    tokens = token_ids(21, 16)
    activations = activations_of(tiny_model(), tokens[:4], tokens[4:], batch_size=batch_size)
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
    seen.clear()
    assert variant_losses(activations, Variant.of([fitted]), positions=9) == pytest.approx(single, rel=1e-5)
    assert seen == runs


def sizes_of_runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of sequences with each run of a variant."""
    seen, run = list[int](), Variant.run

    def noted(variant: Variant, block_runner: BlockRunner, stream: torch.Tensor, *, since: int) -> torch.Tensor:
        seen.append(len(stream))
        return run(variant, block_runner, stream, since=since)

    monkeypatch.setattr(Variant, "run", noted)
    return seen
