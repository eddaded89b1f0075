"""A gate in a run: judged by what was measured, and written into report, card and metrics; the result is complete."""

from pathlib import Path

import torch

from replaceme_core.gate.result import GateResult
from tests.fixtures.models.pipeline import request, run
from tests.fixtures.models.tiny import save_tiny


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
    assert f"| size ratio | {expected['size_ratio']:.4g} | at most 0.01 | **missed** |" in card
    assert (
        f"| perplexity ratio | {expected['perplexity_ratio']:.4g} | at least 0.001 and at most 1000 | passed |" in card
    )
    assert recorder.values("gate_passed") == [1, 1, 1, 1, 0]
    assert recorder.values("gate_value") == list(expected.values())


def test_without_a_gate_nothing_is_said_of_one(tmp_path: Path) -> None:
    finished, recorder, out = run(request(save_tiny(tmp_path / "source")))
    assert finished.report["gate"] is None
    assert "verdict" not in (out / "README.md").read_text()
    assert recorder.values("gate_value") == []
