"""`make gpu-check` on a machine without an accelerator: it says so, and fails."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.harness.checkout import ROOT


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator")
def test_without_an_accelerator_it_fails_with_what_was_found(tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--json", found]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    body = json.loads(found.read_text())
    states = {one["name"]: one["state"] for one in body["findings"]}
    assert (body["ok"], body["device"]) == (False, "cpu")
    assert states["accelerator"] == "failed"
    assert {"torch", "memory", "disk", "sandbox"} <= states.keys()
    assert "torch finds none on this machine" in " ".join(done.stdout.split())
