"""Processes that tests and benchmarks start are gone after `kill_tree`, whatever ends meanwhile."""

import subprocess
from pathlib import Path

import psutil
import pytest

from benchmarks.harness.processes import Started


@pytest.mark.timeout(30)
def test_a_child_that_has_just_ended_saves_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    child = subprocess.Popen(["sleep", "60"])
    ended = psutil.Process(child.pid)
    child.kill()
    child.wait()
    started = Started(process=subprocess.Popen(["sleep", "60"]), log=tmp_path / "log")
    monkeypatch.setattr(Started, "children", lambda _: [ended])
    try:
        started.kill_tree()
        assert started.process.poll() == -9
    finally:
        started.process.kill()
