"""The part `plan` of a report, and the metric from which later plans are corrected."""

from pathlib import Path

import pytest

from replaceme_core.request.method import Method
from replaceme_core.runner.messages import PastJob, Stage
from tests.fixtures.models.pipeline import request, run
from tests.fixtures.models.tiny import save_tiny

EARLIER = PastJob(method=Method.LEAST_SQUARES, inputs="", stages=dict.fromkeys(Stage, (10.0, 30.0)))


def test_the_plan_is_beside_what_the_run_took(tmp_path: Path) -> None:
    one = request(save_tiny(tmp_path / "model"), drop=[3])
    report = run(one.model_copy(update={"history": (EARLIER,)}))[0].report
    plan, stages = report["plan"], report["stages"]
    assert isinstance(plan, dict)
    assert isinstance(stages, list)
    assert plan["basis"] == "measured"
    assert plan["expected_weight_bytes"] == pytest.approx(plan["weight_bytes"], rel=0.05)  # half of it is the header
    for planned, actual in zip(plan["stages"], stages, strict=True):
        assert planned.keys() == {"name", "expected_seconds", "seconds", "expected_peak_bytes", "peak_bytes"}
        assert {name: planned[name] for name in ("name", "seconds", "peak_bytes")} == actual


def test_each_stage_records_what_the_model_says_without_earlier_jobs(tmp_path: Path) -> None:
    one = request(save_tiny(tmp_path / "model"), drop=[3], evaluation={"enabled": False})
    finished, recorder, _ = run(one.model_copy(update={"history": (EARLIER,)}))
    plan = finished.report["plan"]
    assert isinstance(plan, dict)
    modelled = {stage: value for stage, name, value, *_ in recorder.metrics if name == "modelled_seconds"}
    expected = {stage["name"]: stage["expected_seconds"] for stage in plan["stages"]}
    assert set(modelled) == set(expected)
    assert all(2 * seconds < expected[stage] < 4 * seconds for stage, seconds in modelled.items())
    assert {stage: recorder.expected[Stage(stage)] for stage in expected} == expected, "the worker learns it at once"
