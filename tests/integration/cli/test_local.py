"""`replaceme evaluate` with the real runner on a tiny model."""

import json
from pathlib import Path

import pytest

from tests.fixtures.cli.local import run_here
from tests.fixtures.evaluation.local_tasks import CHOICE, OF_A_DATA_SET, write_tasks
from tests.fixtures.models.tiny import save_tiny


def test_evaluate_runs_tasks_of_our_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the runner, which has no network, and in a process that is not in the directory of the tasks."""
    model, tasks = save_tiny(tmp_path / "tiny"), write_tasks(tmp_path / "tasks")
    measure = ("evaluate", model, model, "--samples", "2", "--max-length", "32", "--threads", "1", "--dtype", "float32")
    options = ("--tasks", f"{CHOICE},{OF_A_DATA_SET}", "--tasks-dir", tasks, "--task-limit", "6")
    done = run_here(monkeypatch, tmp_path, *measure, *options, "--json")
    assert done.exit_code == 0, done.stderr
    first, again = json.loads(done.stdout)["models"]
    assert [one["name"] for one in first["tasks"]] == [CHOICE, OF_A_DATA_SET]
    assert [one["samples"] for one in first["tasks"]] == [6, 6]
    assert [one["kept"] for one in first["tasks"]] == [None, None]
    assert [one["accuracy"] for one in again["tasks"]] == [one["accuracy"] for one in first["tasks"]]
    assert (first["tokens"], first["dtype"]) == (2 * 31, "float32")
    assert first["bytes"] == (model / "model.safetensors").stat().st_size
