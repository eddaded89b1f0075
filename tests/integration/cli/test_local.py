"""`replaceme compress` and `evaluate` with the real runner and pipeline on a tiny model."""

import json
from functools import partial
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from tests.fixtures.cli.local import Run, run_here
from tests.fixtures.evaluation.local_tasks import CHOICE, OF_A_DATA_SET, write_tasks
from tests.fixtures.models.tiny import BLOCKS, save_tiny

SMALL = ("--samples", "16", "--max-length", "32", "--threads", "1", "--device", "cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def replaceme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command with a directory for temporary files of its own, to check that none stay there."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    return partial(run_here, monkeypatch, tmp_path, TMPDIR=str(tmp_path / "tmp"))


def test_compress(model: Path, replaceme: Run, tmp_path: Path) -> None:
    source = ("compress", model, "--ratio", "0.34", "--calibration", "builtin:pydoc-topics")
    done = replaceme(*source, "--out", "deep/out", *SMALL, "--json")
    assert done.exit_code == 0, done.stderr
    answer = json.loads(done.stdout)
    assert sorted(answer["removed_blocks"] + answer["kept_blocks"]) == list(range(BLOCKS))
    assert (answer["method"], answer["after"]["blocks"]) == ("auto", BLOCKS - 2)
    out = tmp_path / "deep" / "out"
    assert AutoModelForCausalLM.from_pretrained(out).config.num_hidden_layers == BLOCKS - 2
    assert json.loads((out / "replaceme.json").read_text())["spec"]["model"]["repo_id"] == "local/tiny"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "tmp"]
    assert list((tmp_path / "tmp").iterdir()) == []
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_evaluate_runs_tasks_of_our_own(model: Path, replaceme: Run, tmp_path: Path) -> None:
    """In the runner, which has no network, and in a process that is not in the directory of the tasks."""
    tasks = write_tasks(tmp_path / "tasks")
    measure = ("evaluate", model, model, "--samples", "2", "--max-length", "32", "--threads", "1", "--dtype", "float32")
    options = ("--tasks", f"{CHOICE},{OF_A_DATA_SET}", "--tasks-dir", tasks, "--task-limit", "6")
    done = replaceme(*measure, *options, "--json")
    assert done.exit_code == 0, done.stderr
    first, again = json.loads(done.stdout)["models"]
    assert [one["name"] for one in first["tasks"]] == [CHOICE, OF_A_DATA_SET]
    assert [one["samples"] for one in first["tasks"]] == [6, 6]
    assert [one["kept"] for one in first["tasks"]] == [None, None]
    assert [one["accuracy"] for one in again["tasks"]] == [one["accuracy"] for one in first["tasks"]]
    assert (first["tokens"], first["dtype"]) == (2 * 31, "float32")
    assert first["bytes"] == (model / "model.safetensors").stat().st_size
