"""`make gpu-check` on a machine without an accelerator: it says so, and fails."""

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_check


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator")
def test_without_an_accelerator_it_fails_with_what_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = tmp_path / "found.json"
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--json", str(found)])
    assert gpu_check.main() == 1
    body = json.loads(found.read_text())
    states = {one["name"]: one["state"] for one in body["findings"]}
    assert (body["ok"], body["device"]) == (False, "cpu")
    assert states["accelerator"] == "failed"
    assert {"torch", "memory", "disk", "sandbox"} <= states.keys()
    assert "torch finds none on this machine" in " ".join(capsys.readouterr().out.split())
