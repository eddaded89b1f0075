"""The search for the deepest cut: which depth is found, what a missed criterion says, which trials are the best."""

import random
from collections.abc import Callable

import pytest

from replaceme_core.request.gate import (
    CriterionResult,
    GateResult,
    GateSpec,
    Trial,
    deepest,
    most_trials,
)

VALUES = {
    "perplexity_ratio": 1.5,
    "worst_perplexity_ratio": 2.0,
    "divergence": 0.5,
    "agreement": 0.5,
    "size_ratio": 0.5,
    "accuracy_kept": 0.5,
    "tasks.piqa": 0.5,
}


def counted(is_too_deep: Callable[[int], bool]) -> tuple[Callable[[int], bool], list[int]]:
    tried: list[int] = []

    def look(depth: int) -> bool:
        tried.append(depth)
        return is_too_deep(depth)

    return look, tried


@pytest.mark.parametrize("count", range(1, 41))
def test_it_is_that_of_brute_force_where_quality_only_falls(count: int) -> None:
    depths = list(range(3, 3 + 2 * count, 2))
    for limit in range(2, 2 * count + 4):
        look, tried = counted(lambda depth, limit=limit: depth > limit)  # type: ignore[misc]
        assert deepest(depths, look) == max((depth for depth in depths if depth <= limit), default=None)
        assert len(tried) == len(set(tried)) <= most_trials(count)


def test_elsewhere_the_depth_above_it_was_seen_to_fail() -> None:
    draw = random.Random(0)
    for _ in range(500):
        depths = list(range(1, draw.randint(1, 20) + 1))
        too_deep = {depth: draw.random() < 0.5 for depth in depths}
        look, tried = counted(too_deep.__getitem__)
        found = deepest(depths, look)
        if found is None:
            assert 1 in tried
            assert too_deep[1]
            continue
        assert found in tried
        assert not too_deep[found]
        assert found == depths[-1] or (found + 1 in tried and too_deep[found + 1])


@pytest.mark.parametrize(
    ("name", "limits", "is_too_deep"),
    [
        ("perplexity_ratio", {"max": 1.4}, True),
        ("perplexity_ratio", {"min": 1.6}, False),
        ("worst_perplexity_ratio", {"max": 1.9}, True),
        ("divergence", {"max": 0.4}, True),
        ("divergence", {"min": 0.6}, False),
        ("agreement", {"min": 0.6}, True),
        ("agreement", {"max": 0.4}, False),
        ("size_ratio", {"max": 0.4}, False),
        ("size_ratio", {"min": 0.6}, True),
        ("accuracy_kept", {"min": 0.6}, True),
    ],
)
def test_which_side_of_a_limit_is_too_deep(name: str, limits: dict[str, float], is_too_deep: bool) -> None:
    (one,) = GateSpec.model_validate({name: limits}).judge(VALUES).criteria
    assert (one.passed, one.is_too_deep) == (False, is_too_deep)


def test_a_task_whose_accuracy_is_lost_is_too_deep() -> None:
    (one,) = GateSpec.model_validate({"tasks": {"piqa": {"min_kept": 0.6}}}).judge(VALUES).criteria
    assert one.is_too_deep


def trial(blocks: int, perplexity: float, accuracy: float | None = None, **more: object) -> Trial:
    measured = {"perplexity_ratio": perplexity} | ({} if accuracy is None else {"accuracy_kept": accuracy})
    return Trial.model_validate({"blocks": blocks, "passed": True, "measured": measured, "seconds": 61.0, **more})


def test_a_result_with_trials_is_stored_and_read_back() -> None:
    missed = CriterionResult(name="divergence", value=0.5, min=None, max=0.4, passed=False)
    result = GateResult(
        passed=False, criteria=(missed,), trials=(trial(1, 1.5, criteria=[missed.model_dump()], passed=False),)
    )
    assert GateResult.in_report({"gate": result.model_dump(mode="json")}) == result
    assert str(result) == "no cut passes the gate; of the best one, divergence is 0.5, at most 0.4 is wanted"
    before = result.model_dump(mode="json", exclude={"trials"})
    assert GateResult.in_report({"gate": before}) == result.model_copy(update={"trials": ()})
