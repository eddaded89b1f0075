"""Losses beside those of the dense model, source by source, and the simplest of several good candidates."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from replaceme_core.engine.activations.capture import Batch
from replaceme_core.engine.methods.panel import Panel, variant_losses
from replaceme_core.engine.model.block_runner import BlockRunner
from replaceme_core.engine.model.changes import Cut, FittedCut, Variant
from replaceme_core.engine.text.panel import QUESTIONS, REPEATED
from replaceme_core.request.calibration import SELF_GENERATED
from tests.fixtures.models.activations import activations_of, of_one_source
from tests.fixtures.models.tiny import WIDTH, tiny_model, token_ids

BEST = [100.0, 120.0, 90.0, 110.0]


def panel(*sources: int, sequences: Sequence[int] = (), names: tuple[str, ...] = ("a", "b")) -> Panel:
    """Of one batch for each of `sources`, with ten predictions for each sequence."""
    counts = sequences or [1] * len(sources)
    batches = (
        Batch(tokens=torch.zeros(count, 11), held_out=True, source=source)
        for source, count in zip(sources, counts, strict=True)
    )
    return Panel(batches=dict(enumerate(batches)), names=names)


def of(losses: Sequence[float]) -> dict[int, float]:
    return dict(enumerate(losses))


@pytest.mark.parametrize(
    ("losses", "best", "worse"),
    [
        ([105.0, 125.5, 94.8, 115.1], BEST, True),  # by about five in every batch
        ([103.0, 117.5, 91.0, 109.0], BEST, False),  # now more, now less
        (BEST, BEST, False),
        ([2.0], [1.0], True),  # a single batch decides by itself
        ([1.0], [1.0], False),
        ([math.inf, 1.0], [1.0, 1.0], True),
        ([1.0, 1.0], [math.inf, 1.0], False),
    ],
)
def test_a_difference_counts_when_it_is_more_than_one_standard_error(
    losses: list[float], best: list[float], worse: bool
) -> None:
    assert panel(*[0] * len(best)).is_worse(of(losses), of(best)) is worse


def test_every_source_weighs_the_same_however_much_text_it_has() -> None:
    three = panel(0, 1, 1, sequences=[1, 2, 6])
    losses = of([30.0, 20.0, 140.0])
    assert three.by_source(losses) == (("a", 3.0), ("b", 2.0))
    assert three.mean(losses) == 2.5


def test_the_standard_error_is_that_of_the_mean_over_the_sources() -> None:
    one, other = [10.0, 30.0, 20.0, 20.0], [0.0, 0.0, 0.0, 0.0]  # 1 and 3, 2 and 2 nats each
    variance = ((1 - 2) ** 2 + (3 - 2) ** 2) / 2
    assert panel(0, 0, 1, 1).error(of(one), of(other)) == pytest.approx(math.sqrt(variance * (1 / 2 + 1 / 2)) / 2)


def test_the_simplest_is_taken_of_those_within_a_standard_error() -> None:
    several = panel(0, 0, 0, 0)
    best, near, far = of(BEST), of([101.0, 119.0, 92.0, 109.0]), of([110.0, 130.0, 100.0, 121.0])
    assert several.simplest([near, best]) == 0
    assert several.simplest([far, best]) == 1
    assert several.simplest([far, near, best]) == 1
    assert several.simplest([best]) == 0


def test_what_people_wrote_is_apart() -> None:
    names = ("text", SELF_GENERATED, "other text", REPEATED, QUESTIONS)
    mixed = panel(0, 1, 2, 3, 4, names=names)
    losses = of([10.0, 90.0, 30.0, 90.0, 90.0])
    assert mixed.written_by_people().mean(losses) == 2.0
    assert [name for name, _ in mixed.written_by_people().by_source(losses)] == ["text", "other text"]


@torch.inference_mode()
def test_only_what_counts_is_predicted_and_nothing_runs_after_it() -> None:
    tokens = token_ids(8, 16)
    scored = torch.zeros(4, 16, dtype=torch.bool)
    scored[:, 1:9:2] = True
    text = replace(of_one_source(fit=tokens[:4], held_out=tokens[4:]), held_out_scored=scored)
    activations = activations_of(tiny_model(), text.fit, text.held_out, text=text, batch_size=2)
    found = Panel.of(activations)
    assert [batch.predictions for batch in found.batches.values()] == [4] * 4
    model = tiny_model()
    for batch, loss in activations.dense_losses().items():
        ids = activations.tokens(batch)
        each = torch.nn.functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="none")
        assert loss == pytest.approx(float(each[:8:2].sum()), rel=1e-4)
    seen, run = list[torch.Size](), Variant.run

    def noted(variant: Variant, block_runner: BlockRunner, stream: torch.Tensor, *, since: int) -> torch.Tensor:
        seen.append(stream.shape[:2])
        return run(variant, block_runner, stream, since=since)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Variant, "run", noted)
        plain = variant_losses(activations, Variant(removed=frozenset({2})))
        one = variant_losses(activations, Variant(removed=frozenset({2})), numbers=[3])
        assert one == pytest.approx({3: plain[3]})
    assert seen == [(2, 8), (2, 8), (1, 8)], "the ninth token is predicted from the eighth"


@torch.inference_mode()
def test_small_batches_are_run_together(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = token_ids(21, 16)
    activations = activations_of(tiny_model(), tokens[:4], tokens[4:])
    variant = Variant.of([FittedCut(cut=Cut(start=2, end=2), delta=0.1 * torch.eye(WIDTH))])
    single = {
        number: variant_losses(activations, variant, numbers=[number])[number]
        for number in activations.held_out_batches
    }
    seen, run = list[int](), Variant.run

    def noted(variant: Variant, block_runner: BlockRunner, stream: torch.Tensor, *, since: int) -> torch.Tensor:
        seen.append(len(stream))
        return run(variant, block_runner, stream, since=since)

    monkeypatch.setattr(Variant, "run", noted)
    assert variant_losses(activations, variant) == pytest.approx(single, rel=1e-5)
    assert seen == [4, 4, 4, 4, 1]
