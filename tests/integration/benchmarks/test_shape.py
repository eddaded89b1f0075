"""The benchmark for shapes, on one that is small."""

import json
from pathlib import Path

import pytest

from benchmarks.shape import main


def test_a_random_model_of_the_shape_goes_through(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape = ["--blocks", "6", "--width", "32", "--inner", "64", "--heads", "4", "--key-value-heads", "2"]
    result = tmp_path / "result.json"
    main([*shape, "--samples", "16", "--length", "64", "--device", "cpu", "--json", str(result)])
    found = json.loads(result.read_text())
    assert [stage["name"] for stage in found["stages"]] == ["calibrate", "select", "solve", "fold", "save"]
    assert found["compute"]["device"] == "cpu"
    assert "| calibrate | " in capsys.readouterr().out
