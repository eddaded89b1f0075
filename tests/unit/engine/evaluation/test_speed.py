"""Speed: what a run does, in which order models run, what is counted, and when a difference is none."""

import time

import pytest
import torch

from replaceme_core.engine.evaluation import speed as module
from replaceme_core.engine.evaluation.speed import (
    FEWEST_RUNS,
    RUNS,
    LiveBytes,
    Rate,
    measure_speed,
    storages,
    told_apart,
)
from tests.fixtures.models.tiny import VARIANTS, Variant, tiny_model, token_ids

LENGTH, NEW_TOKENS = 24, 3


@pytest.fixture(autouse=True)
def few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NEW_TOKENS", NEW_TOKENS)


@pytest.mark.parametrize("variant", VARIANTS[::4], ids=lambda variant: variant.name)
def test_every_family_reads_and_writes(variant: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RUNS", 1)
    model = tiny_model(variant)
    (found,) = measure_speed([model], token_ids(1, LENGTH))
    assert (found.prompt_tokens, found.new_tokens) == (LENGTH - NEW_TOKENS, NEW_TOKENS)
    assert found.prefill.median > 0
    assert found.decode.median > 0
    assert found.cache_bytes_per_token > 0
    assert found.peak_bytes > sum(storages(model).values())


def test_the_cache_has_the_size_that_the_config_says() -> None:
    model = tiny_model()
    config = model.config
    (found,) = measure_speed([model], token_ids(1, LENGTH))
    head = config.hidden_size // config.num_attention_heads
    values = 2 * config.num_hidden_layers * config.num_key_value_heads * head
    assert found.cache_bytes_per_token == values * 4


def test_models_run_in_turn_after_a_warm_up_each() -> None:
    order: list[str] = []
    models = [tiny_model(), tiny_model()]
    for name, model in zip("ab", models, strict=True):
        model.register_forward_hook(lambda *_, name=name: order.append(name))
    one, _ = measure_speed(models, [token_ids(1, LENGTH)[0]] * 2)
    each = 1 + NEW_TOKENS
    assert "".join(order) == ("a" * each + "b" * each) * (1 + RUNS)
    assert one.prefill.runs == one.decode.runs == RUNS


def test_what_is_slow_runs_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS", 0.0)
    (found,) = measure_speed([tiny_model()], token_ids(1, LENGTH))
    assert found.prefill.runs == FEWEST_RUNS


def test_reading_and_writing_are_timed_apart() -> None:
    model = tiny_model()

    def slow(_: object, __: object, kwargs: dict[str, torch.Tensor]) -> None:
        time.sleep(0.05 if kwargs["input_ids"].shape[1] > 1 else 0.001)

    model.register_forward_pre_hook(slow, with_kwargs=True)
    (found,) = measure_speed([model], token_ids(1, LENGTH))
    assert found.prefill.high <= (LENGTH - NEW_TOKENS) / 0.05
    assert found.decode.low > 0
    assert found.decode.high <= 1 / 0.001


@pytest.mark.parametrize(
    ("one", "other", "apart"),
    [
        ((90, 100, 110), (125, 130, 135), True),
        ((90, 100, 110), (110, 119, 130), False),  # 19 apart, but up to 20 from run to run
        ((99, 100, 101), (100, 100, 100), False),
        ((99, 100, 101), (50, 110, 120), False),
    ],
)
def test_a_difference_within_the_spread_is_none(one: tuple[float, ...], other: tuple[float, ...], apart: bool) -> None:
    assert told_apart(Rate.of(one), Rate.of(other)) is apart
    assert told_apart(Rate.of(other), Rate.of(one)) is apart


def test_tensors_are_counted_until_they_are_freed() -> None:
    given = torch.zeros(1000)
    with torch.inference_mode(), LiveBytes({given.untyped_storage()._cdata}) as live:
        view = given.view(10, 100)  # of what was there before
        first = view + 1
        second = first + 1
        del first
        third = second + 1
        del second, third
        _ = given[:10] + 1
    assert live.peak == 2 * 4000
