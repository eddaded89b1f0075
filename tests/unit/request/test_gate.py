"""Gates: what a request may ask for, how measured values are judged, and the search for the deepest cut."""

import random
from collections.abc import Callable

import pytest
from pydantic import ValidationError

from benchmarks.harness.specs import a_spec
from replaceme_core.ledger.row_mapping import stored_spec
from replaceme_core.request.gate import (
    CriterionResult,
    GateResult,
    GateSpec,
    Trial,
    deepest,
    most_trials,
)
from replaceme_core.request.spec import CompressionSpec

VALUES = {
    "perplexity_ratio": 1.5,
    "worst_perplexity_ratio": 2.0,
    "divergence": 0.25,
    "agreement": 0.75,
    "size_ratio": 0.8,
    "accuracy_kept": 0.9,
}


@pytest.mark.parametrize("name", list(VALUES))
def test_a_limit_is_met_up_to_and_including_it(name: str) -> None:
    value = VALUES[name]
    for limits, passed in (
        ({"max": value}, True),
        ({"max": value - 0.01}, False),
        ({"min": value}, True),
        ({"min": value + 0.01}, False),
        ({"min": value - 0.01, "max": value + 0.01}, True),
    ):
        result = GateSpec.model_validate({name: limits}).judge(VALUES)
        (one,) = result.criteria
        assert (result.passed, one.passed) == (passed, passed), limits
        assert (one.name, one.value, one.min, one.max) == (name, value, limits.get("min"), limits.get("max"))


def test_one_missed_criterion_is_enough() -> None:
    result = GateSpec.model_validate({"perplexity_ratio": {"max": 1.6}, "agreement": {"min": 0.9}}).judge(VALUES)
    assert not result.passed
    assert [(one.name, one.passed) for one in result.criteria] == [("perplexity_ratio", True), ("agreement", False)]
    assert str(result) == "the result misses its gate: agreement is 0.75, at least 0.9 is wanted"
    assert GateResult.in_report({"gate": result.model_dump(mode="json")}) == result


@pytest.mark.parametrize(
    ("gate", "words"),
    [
        ({"perplexity_ratio": {}}, "give min, max or both"),
        ({"divergence": {"max": float("inf")}}, "finite"),
        ({"perplexity_ratio": {"max": "1.6"}}, "valid number"),
        (
            {"perplexity_ratio": {"min": 2.0}, "worst_perplexity_ratio": {"max": 1.5}},
            "never better than the first one",
        ),
    ],
)
def test_a_gate_that_means_nothing_is_refused(gate: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        GateSpec.model_validate(gate)


def test_without_a_gate_everything_is_stored_as_the_version_before_reads_it() -> None:
    plain, gated = a_spec(), a_spec(gate={"size_ratio": {"max": 0.9}})
    assert "gate" not in stored_spec(plain)
    assert stored_spec(plain)["evaluation"] == {"enabled": True, "samples": 16}
    assert plain.fingerprint() == "3e28a628bc0dde7b85b3f1c8930786e26f4619ee851fbec0b7a7fa8d06830211"
    assert gated.fingerprint() != plain.fingerprint()
    assert CompressionSpec.model_validate(stored_spec(gated)).gate == gated.gate


def test_single_tasks_are_criteria() -> None:
    gate = GateSpec.model_validate({"tasks": {"piqa": {"min_kept": 0.95}, "sciq": {"min_kept": 0.5}}})
    result = gate.judge({"tasks.piqa": 0.9, "tasks.sciq": 0.5})
    assert [(one.name, one.min, one.passed) for one in result.criteria] == [
        ("tasks.piqa", 0.95, False),
        ("tasks.sciq", 0.5, True),
    ]


@pytest.mark.parametrize(
    ("gate", "tasks", "words"),
    [
        ({"accuracy_kept": {"min": 0.9}}, [], "name some in evaluation.tasks"),
        ({"tasks": {"piqa": {"min_kept": 0.9}}}, ["replaceme_paper"], None),
        ({"accuracy_kept": {"min": 0.9}}, ["mine"], None),
    ],
)
def test_a_gate_judges_tasks_that_are_run(gate: dict[str, object], tasks: list[str], words: str | None) -> None:
    fields = {"gate": gate, "evaluation": {"tasks": tasks}}
    if words is None:
        spec = a_spec(**fields)
        assert CompressionSpec.model_validate(stored_spec(spec)) == spec
        return
    with pytest.raises(ValidationError, match=words):
        a_spec(**fields)


@pytest.mark.parametrize(
    ("evaluation", "words"),
    [
        ({"tasks": ["piqa", "piqa"]}, "named twice"),
        ({"tasks": ["../piqa"]}, "match pattern"),
        ({"tasks": ["piqa"], "enabled": False}, "turn enabled on"),
        ({"tasks": ["piqa"], "task_limit": 0}, "greater than or equal to 1"),
    ],
)
def test_tasks_that_cannot_be_run_are_refused(evaluation: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        a_spec(evaluation=evaluation)


MEASURED = {
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


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 40])
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
    (one,) = GateSpec.model_validate({name: limits}).judge(MEASURED).criteria
    assert (one.passed, one.is_too_deep) == (False, is_too_deep)


def test_a_task_whose_accuracy_is_lost_is_too_deep() -> None:
    (one,) = GateSpec.model_validate({"tasks": {"piqa": {"min_kept": 0.6}}}).judge(MEASURED).criteria
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
