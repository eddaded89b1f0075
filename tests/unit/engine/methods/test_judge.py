"""Losses beside those of the dense model, the tournament that they decide, and the sequences that they are of."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from replaceme_core.engine.methods.judge import Judge, accepted_scale, tournament
from replaceme_core.engine.methods.replay import held_out_judge, next_losses, variant_losses
from replaceme_core.engine.model.block_runner import BlockRunner
from replaceme_core.engine.model.changes import Cut, FittedCut, Variant
from replaceme_core.engine.text.tokens import REPEATED
from tests.fixtures.models.activations import activations_of
from tests.fixtures.models.tiny import WIDTH, tiny_model, token_ids

BEST = [100.0, 120.0, 90.0, 110.0]


def judge(*sources: int, dense: float = 50.0) -> Judge:
    return Judge(sources=sources, predictions=[10] * len(sources), dense=[dense] * len(sources), names=("a", "b"))


@pytest.mark.parametrize(
    ("losses", "best", "worse"),
    [
        ([105.0, 125.5, 94.8, 115.1], BEST, True),  # by about five in every batch
        ([103.0, 117.5, 94.0, 109.0], BEST, False),  # now more, now less
        (BEST, BEST, False),
        ([101.0, 121.0], BEST, True),  # left out before
        ([2.0], [1.0], True),  # a single batch decides by itself
        ([1.0], [1.0], False),
    ],
)
def test_a_difference_counts_when_it_is_more_than_chance(losses: list[float], best: list[float], worse: bool) -> None:
    assert judge(*[0] * len(best)).is_worse(losses, than=best) is worse


def test_the_worst_source_counts_twice() -> None:
    """A gain on one kind of text does not pay for a loss on another; how hard a text is to predict does not count."""
    two = judge(0, 1, 0, 1)
    even, lopsided = [60.0] * 4, [50.0, 70.0, 50.0, 70.0]
    assert two.mean(even) == two.mean(lopsided)
    assert two.score(even) < two.score(lopsided)
    assert two.score(lopsided) == pytest.approx(math.log(70 / 50) / 2 + math.log(70 / 50))
    assert two.by_source(lopsided, beside=lopsided) == (("a", 5.0), ("b", 7.0))
    assert two.by_source([60.0, 70.0], beside=lopsided) == (("a", 6.0), ("b", 7.0))
    easy_and_hard = Judge(sources=[0, 1], predictions=[10, 10], dense=[10.0, 1000.0])
    assert easy_and_hard.score([20.0, 1000.0]) == pytest.approx(easy_and_hard.score([10.0, 2000.0]))


def test_the_heaviest_source_counts_twice_whichever_is_worst() -> None:
    usual, heavy = judge(0, 1), replace(judge(0, 1), heaviest=1)
    one, other = [70.0, 54.0], [68.0, 56.0]
    assert usual.score(other) < usual.score(one)
    assert heavy.score(one) < heavy.score(other)
    assert heavy.score(one) == pytest.approx((math.log(70 / 50) + math.log(54 / 50)) / 2 + math.log(54 / 50))
    assert heavy.score(one[:1]) == usual.score(one[:1]), "nothing of it has been seen"


def test_a_probe_is_shown_and_does_not_count() -> None:
    sources, predictions, dense = [1, 0, 1, 0], [20, 10, 20, 10], [10.0, 50.0, 10.0, 50.0]
    probed = Judge(sources=sources, predictions=predictions, dense=dense, names=("a", "b"), probes=[1])
    alone = judge(0, 0)
    best, other = [60.0, 70.0, 60.0, 71.0], [10.0, 75.0, 10.0, 77.0]
    assert probed.score(best) == alone.score([70.0, 71.0])
    assert probed.mean(best) == alone.mean([70.0, 71.0])
    assert probed.is_worse(other, than=best) and alone.is_worse([75.0, 77.0], than=[70.0, 71.0])
    assert probed.by_source(best, beside=best) == (("a", 7.05), ("b", 3.0))
    assert (probed.score(best[:1]), probed.mean(best[:1])) == (0, 0), "a probe only"
    assert not probed.is_worse(other[:1], than=best[:1])


def test_nothing_is_clearly_worse_before_every_source_was_seen_several_times() -> None:
    two = judge(0, 1, 0, 0, 0, 1, 0, 1)
    worse, best = [70.0 + number % 2 for number in range(8)], [60.0] * 8
    verdicts = [two.is_clearly_worse(worse[:seen], than=best[:seen]) for seen in range(1, 9)]
    assert verdicts == [False] * 7 + [True], "the three batches of the second source are all that it has"


def test_losses_that_ended_early_are_compared_where_both_are_known() -> None:
    four = judge(0, 0, 0, 0)
    assert four.paired_mean([60.0, 40.0], beside=[50.0, 30.0, 90.0, 110.0]) == 8.0, "worse by 1, on tokens of 7"
    assert four.paired_mean([60.0, 40.0], beside=[50.0, 30.0]) == 5.0


NOISE = [100.01, 99.99, 100.02, 100.0, 99.98, 100.01, 100.0, 99.99]
NEAR = [100.0, 101.0] * 4
SWINGS = [9.0, -5.0, 7.0, -3.0, 6.0, -4.0, 8.0, -2.0]  # 2 on average, standard error 2.1


def swinging(part: float) -> list[float]:
    return [one + part * by for one, by in zip(BEST * 2, SWINGS, strict=True)]


@pytest.mark.parametrize(
    ("sources", "entries", "winner", "looks"),
    [
        ([0] * 8, {"worse": [101.0] * 8, "best": NOISE}, "best", [4, 8]),  # the winner has all losses
        ([0] * 8, {"by rank": NEAR, "other": NEAR[::-1]}, "by rank", [8, 8]),
        ([0] * 8, {"by rank": swinging(0.25), "best": BEST * 2}, "by rank", [8, 8]),
        ([0] * 8, {"by rank": swinging(1.0), "best": BEST * 2}, "best", [8, 8]),  # 2 % is too much for a rank
        ([0, 1] * 4, {"at home": [55.0, 90.0] * 4, "everywhere": [65.0, 66.0] * 4}, "everywhere", None),
    ],
)
def test_entries_meet_until_there_is_no_doubt_and_the_rank_decides_between_near_ones(
    sources: list[int], entries: dict[str, list[float]], winner: str, looks: list[int] | None
) -> None:
    found, seen = tournament(
        list(entries),
        judge=judge(*sources),
        loss=lambda one, batch: entries[one][batch],
        rank={one: number for number, one in enumerate(entries)},
        advance=lambda _: None,
    )
    assert found == winner
    assert seen[winner] == entries[winner]
    assert looks is None or [len(losses) for losses in seen.values()] == looks


@pytest.mark.parametrize(("change", "scale", "looked_at"), [(-1.0, 1.0, 4), (0.0, 0.0, 8), (1.0, 0.0, 8)])
def test_a_change_earns_its_scale_with_no_more_looks_than_needed(change: float, scale: float, looked_at: int) -> None:
    def loss_at(at: float) -> Callable[[int], float]:
        return lambda batch: 100.0 + batch + at * change

    known = [loss_at(1.0)(batch) for batch in range(8)]
    found, scaled, none = accepted_scale(loss_at, judge=judge(*[0] * 8), known=known)
    assert found == scale
    assert len(none) == looked_at
    assert len(scaled) == 8


@torch.inference_mode()
def test_repeated_passages_count_only_where_a_refit_follows() -> None:
    tokens, sources = token_ids(8, 16), torch.tensor([0, 1, 0, 1])
    named = {"held_out_sources": sources, "source_names": ("text", REPEATED), "batch_size": 2}
    activations = activations_of(tiny_model(), tokens[:4], tokens[4:], **named)
    plain, recall = held_out_judge(activations), held_out_judge(activations, recall=True)
    losses = [2 * loss if source == 1 else loss for loss, source in zip(plain.dense, plain.sources, strict=True)]
    assert plain.score(losses) == plain.score(plain.dense) == 0
    assert recall.score(losses) == pytest.approx(1.5 * math.log(2)), "twice, beside the mean"
    elsewhere = [2 * loss if source == 0 else loss for loss, source in zip(plain.dense, plain.sources, strict=True)]
    assert recall.score(elsewhere) == pytest.approx(0.5 * math.log(2)), "the worst source does not count twice here"
    assert dict(plain.by_source(losses, beside=losses))[REPEATED] > 0
    some = held_out_judge(activations, batches=activations.held_out_batches[2:3])
    assert some.dense == plain.dense[2:3]


@torch.inference_mode()
def test_a_cut_is_replayed_on_small_batches_together(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = token_ids(21, 16)
    activations = activations_of(tiny_model(), tokens[:4], tokens[4:])
    fitted = FittedCut(cut=Cut(start=2, end=2), delta=0.1 * torch.eye(WIDTH))
    variant = Variant.of([fitted])
    single = [
        variant_losses(activations, variant, batches=[batch], positions=9)[0] for batch in activations.held_out_batches
    ]
    seen, run = list[int](), Variant.run

    def noted(variant: Variant, block_runner: BlockRunner, stream: torch.Tensor, *, since: int) -> torch.Tensor:
        seen.append(len(stream))
        return run(variant, block_runner, stream, since=since)

    monkeypatch.setattr(Variant, "run", noted)
    losses: list[float] = []
    while len(losses) < len(single):
        losses += next_losses(activations, fitted, first=len(losses), positions=9)
    assert losses == pytest.approx(single, rel=1e-5)
    assert variant_losses(activations, variant, positions=9) == pytest.approx(single, rel=1e-5)
    assert seen == [4, 4, 4, 4, 1] * 2
