"""Gates: what a request may ask for, how measured values are judged, and the search for the deepest cut."""

import pytest
from pydantic import ValidationError

from benchmarks.harness.specs import a_spec
from replaceme_core.ledger.records import stored_spec
from replaceme_core.request.gate import (
    GateResult,
    GateSpec,
    Trial,
    read_criteria,
    rejection_in,
    written_criteria,
)
from replaceme_core.request.spec import CompressionSpec

VALUES = {
    "perplexity_ratio": 1.5,
    "worst_perplexity_ratio": 2.0,
    "divergence": 0.5,
    "agreement": 0.5,
    "size_ratio": 0.5,
    "accuracy_kept": 0.5,
    "tasks.piqa": 0.5,
}


def gate(**criteria: object) -> GateSpec:
    return GateSpec.model_validate(criteria)


@pytest.mark.parametrize(
    ("criterion", "passed", "is_too_deep"),
    [
        ({"perplexity_ratio": {"max": 1.5}}, True, False),  # a limit is met up to and including it
        ({"perplexity_ratio": {"min": 1.5}}, True, False),
        ({"perplexity_ratio": {"min": 1.4, "max": 1.6}}, True, False),
        ({"perplexity_ratio": {"max": 1.4}}, False, True),
        ({"perplexity_ratio": {"min": 1.6}}, False, False),
        ({"worst_perplexity_ratio": {"max": 1.9}}, False, True),
        ({"divergence": {"max": 0.4}}, False, True),
        ({"divergence": {"min": 0.6}}, False, False),
        ({"agreement": {"min": 0.6}}, False, True),
        ({"agreement": {"max": 0.4}}, False, False),
        ({"size_ratio": {"max": 0.4}}, False, False),
        ({"size_ratio": {"min": 0.6}}, False, True),
        ({"accuracy_kept": {"min": 0.6}}, False, True),
        ({"tasks": {"piqa": {"min_kept": 0.6}}}, False, True),
        ({"tasks": {"piqa": {"min_kept": 0.5}}}, True, False),
    ],
    ids=str,
)
def test_a_value_is_judged_by_its_limits(criterion: dict[str, object], passed: bool, is_too_deep: bool) -> None:
    """Too deep: removing fewer blocks may help."""
    result = gate(**criterion).judge(VALUES)
    (one,) = result.criteria
    assert one.value == VALUES[one.name]
    assert (result.passed, one.passed, one.is_too_deep) == (passed, passed, is_too_deep)


def test_rounding_does_not_miss_a_limit() -> None:
    kept = (360 / 500) / (400 / 500)
    assert kept < 0.9
    (one,) = gate(accuracy_kept={"min": 0.9}).judge({"accuracy_kept": kept}).criteria
    assert (one.passed, one.is_too_deep) == (True, False)


@pytest.mark.parametrize(
    ("criteria", "words"),
    [
        ({"perplexity_ratio": {}}, "give min, max or both"),
        ({"divergence": {"max": float("inf")}}, "finite"),
        ({"perplexity_ratio": {"max": "1.6"}}, "valid number"),
        ({"perplexity_ratio": {"min": 2.0}, "worst_perplexity_ratio": {"max": 1.5}}, "never better than the first"),
    ],
)
def test_a_gate_that_means_nothing_is_refused(criteria: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        gate(**criteria)


def test_a_gate_judges_tasks_that_are_run() -> None:
    kept, of_piqa = {"accuracy_kept": {"min": 0.9}}, {"tasks": {"piqa": {"min_kept": 0.9}}}
    for criteria, tasks in ((kept, ["mine"]), (of_piqa, ["replaceme_paper"])):
        spec = a_spec(gate=criteria, evaluation={"tasks": tasks})
        assert CompressionSpec.model_validate(stored_spec(spec)) == spec
    with pytest.raises(ValidationError, match=r"name some in evaluation\.tasks; for a model of images.*leave it out"):
        a_spec(gate=kept)
    with pytest.raises(ValidationError, match="replaceme_paper stands for several tasks: judge one of them"):
        a_spec(gate={"tasks": {"replaceme_paper": {"min_kept": 0.9}}}, evaluation={"tasks": ["replaceme_paper"]})


def test_what_is_written_of_a_gate_is_read_back() -> None:
    for limit in (1e-7, 0.25, 1.0, 1e16, 1.5e300):
        given = gate(perplexity_ratio={"max": limit}, tasks={"piqa": {"min_kept": 0.5}})
        assert gate(**read_criteria(written_criteria(given))) == given


def test_without_a_gate_everything_is_stored_as_the_version_before_reads_it() -> None:
    plain, gated = a_spec(), a_spec(gate={"size_ratio": {"max": 0.9}})
    assert "gate" not in stored_spec(plain)
    assert stored_spec(plain)["evaluation"] == {"enabled": True, "samples": 16}
    assert plain.fingerprint() == "3e28a628bc0dde7b85b3f1c8930786e26f4619ee851fbec0b7a7fa8d06830211"
    assert gated.fingerprint() != plain.fingerprint()


def test_one_missed_criterion_is_enough_and_a_result_is_read_back() -> None:
    result = gate(perplexity_ratio={"max": 1.6}, agreement={"min": 0.9}).judge(VALUES)
    assert [(one.name, one.passed) for one in result.criteria] == [("perplexity_ratio", True), ("agreement", False)]
    trial = Trial(blocks=1, passed=False, measured={"agreement": 0.5}, seconds=61.0, criteria=result.missed)
    searched = result.model_copy(update={"trials": (trial,)})
    missed = "agreement is 0.5, at least 0.9 is wanted"
    for one, said in (
        (result, "the result misses its gate: "),
        (searched, "no cut passes the gate; of the best one, "),
    ):
        report = {"gate": one.model_dump(mode="json")}
        assert GateResult.in_report(report) == one
        assert rejection_in(report) == said + missed
