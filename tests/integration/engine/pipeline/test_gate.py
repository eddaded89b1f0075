"""A gate in a run: judged by what was measured, and written into report, card and metrics; the result is complete."""

from pathlib import Path

import pytest
import torch

from replaceme_core.engine.evaluation.dense_results import DenseResults
from replaceme_core.engine.evaluation.tasks import load_tasks
from replaceme_core.engine.model.load import load_model
from replaceme_core.engine.pipeline import compress
from replaceme_core.errors import InvalidInput
from replaceme_core.request.gate import GateResult
from tests.fixtures.evaluation.local_tasks import CHOICE, QUESTIONS, ROLLING, write_tasks
from tests.fixtures.models.pipeline import request, run
from tests.fixtures.models.recorder import Recorder
from tests.fixtures.models.tiny import byte_tokenizer, save_tiny


def test_every_criterion_is_judged_by_what_was_measured(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source", dtype=torch.bfloat16)
    gate = {
        "perplexity_ratio": {"min": 0.001, "max": 1000},
        "worst_perplexity_ratio": {"max": 1000},
        "divergence": {"max": 100},
        "agreement": {"max": 1},
        "size_ratio": {"max": 0.01},
    }
    finished, recorder, out = run(request(source, gate=gate))
    report = finished.report
    result = GateResult.in_report(report)
    assert result is not None
    assert not result.passed
    texts = report["texts"]
    assert isinstance(texts, list)
    first, sizes = texts[0], {side: report[side]["bytes"] for side in ("before", "after")}  # type: ignore[index]
    expected = {
        "perplexity_ratio": first["ratio"],
        "worst_perplexity_ratio": max(text["ratio"] for text in texts),
        "divergence": first["divergence"],
        "agreement": first["agreement"],
        "size_ratio": sizes["after"] / sizes["before"],
    }
    assert {one.name: one.value for one in result.criteria} == expected
    assert [one.name for one in result.missed] == ["size_ratio"]
    card = (out / "README.md").read_text()
    assert f"| **size_ratio** | {expected['size_ratio']:.6g} | at most 0.01 | ✗ missed |" in card
    assert (
        f"| perplexity_ratio | {expected['perplexity_ratio']:.6g} | at least 0.001 and at most 1000 | passed |" in card
    )
    assert recorder.values("gate_passed") == [1, 1, 1, 1, 0]
    assert recorder.values("gate_value") == list(expected.values())


def test_without_a_gate_nothing_is_said_of_one(tmp_path: Path) -> None:
    finished, recorder, out = run(request(save_tiny(tmp_path / "source")))
    assert finished.report["gate"] is None
    assert "Verdict" not in (out / "README.md").read_text()
    assert recorder.values("gate_value") == []


@pytest.mark.filterwarnings("default")  # what lm_eval warns of is not ours
def test_tasks_are_run_on_both_models_and_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    source = save_tiny(tmp_path / "source", num_hidden_layers=6)
    tasks = str(write_tasks(tmp_path / "tasks"))
    gate = {"accuracy_kept": {"min": 0}, "tasks": {CHOICE: {"min_kept": 100}}}
    asked = {"evaluation": {"samples": 4, "tasks": [CHOICE, ROLLING]}, "gate": gate, "method": {"name": "drop"}}
    one = request(source, **asked).model_copy(update={"tasks_directory": tasks})
    finished, recorder, out = run(one)
    choice, rolling = finished.report["tasks"]  # type: ignore[misc]
    assert (choice["name"], choice["samples"], rolling["before"]["accuracy"]) == (CHOICE, QUESTIONS, None)
    before, after = choice["before"]["accuracy"], choice["after"]["accuracy"]
    assert choice["kept"] == after / before
    result = GateResult.in_report(finished.report)
    assert result is not None
    assert {one.name: (one.value, one.passed) for one in result.criteria} == {
        "accuracy_kept": (after / before, True),
        f"tasks.{CHOICE}": (after / before, False),
    }
    assert recorder.values("before.task_accuracy") == [before]
    card = (out / "README.md").read_text()
    assert f"| {CHOICE} | {100 * before:.1f} % (" in card
    assert "No benchmark" not in card
    measured = load_tasks([CHOICE], directory=tasks)
    assert measured is not None
    (alone,) = measured.run(load_model(out, dtype=torch.float32, device="cpu"), byte_tokenizer(), DenseResults())
    assert alone.accuracy == after


def test_a_task_that_is_not_there_fails_before_anything_is_computed(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source")
    tasks = write_tasks(tmp_path / "tasks")
    (tasks / "questions.jsonl").unlink()
    recorder = Recorder()
    one = request(source, evaluation={"tasks": [CHOICE]}).model_copy(update={"tasks_directory": str(tasks)})
    with pytest.raises(InvalidInput, match=r"reads questions\.jsonl, which is not in the"):
        compress(one, recorder)
    assert recorder.stages == []
