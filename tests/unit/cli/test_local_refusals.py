"""Input that `compress` and `evaluate` refuse before anything starts, and the messages."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.cli.local import CONFIG, Run, left_over
from tests.fixtures.evaluation.local_tasks import CHOICE, write_tasks

BAD = {
    "no model": (["nowhere", "--ratio", "0.5"], "nowhere is not a directory"),
    "not a model": (["scratch", "--ratio", "0.5"], "no config.json"),
    "ratio 0": (["a model", "--ratio", "0"], "greater than 0"),
    "groups": (["a model", "--ratio", "0.25", "--groups", "2"], "in at most 1 group,"),
    "loss": (["a model", "--ratio", "0.25", "--loss", "light"], "loss is for cosine; name the method"),
    "ratio 1": (["a model", "--ratio", "1"], "less than 1"),
    "ratio nan": (["a model", "--ratio", "nan"], "--ratio"),
    "ratio text": (["a model", "--ratio", "much"], "--ratio"),
    "neither": (["a model"], "ratio"),
    "both": (["a model", "--ratio", "0.5", "--drop", "1"], "both are given"),
    "block 0": (["a model", "--drop", "0"], "block 0 cannot be removed"),
    "no such block": (["a model", "--drop", "4"], "there is no block 4"),
    "drop text": (["a model", "--drop", "1,x"], "--drop"),
    "twice": (["a model", "--drop", "1,1"], "named twice"),
    "method": (["a model", "--ratio", "0.5", "--method", "magic"], "'--method'"),
    "samples": (["a model", "--ratio", "0.5", "--samples", "1"], "calibration.samples"),
    "device": (["a model", "--ratio", "0.5", "--device", "CPU!"], "compute.device"),
    "one text twice": (["a model", "--ratio", "0.5", "--calibration", "some text.txt"], "is given twice"),
    "shares": (["a model", "--ratio", "0.5", "--calibration", "builtin:code=1.5"], "calibration.sources.0.share"),
    "no part left": (
        ["a model", "--ratio", "0.5", "--calibration", "builtin:code=0.6", "--calibration", "builtin:prose=0.4"],
        "leaves nothing",
    ),
    "own text beside several": (
        ["a model", "--ratio", "0.5", "--calibration", "builtin:code", "--self-generated", "0.5"],
        "calibration.self_generated: self_generated belongs to one of the sources",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_before_anything_starts(
    replaceme: Run, model: Path, text: Path, tmp_path: Path, name: str
) -> None:
    arguments, words = BAD[name]
    done = replaceme("compress", *arguments, "--out", "out", "--calibration", text)
    assert done.exit_code == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "out").exists()
    assert left_over(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--tasks", CHOICE], "give --tasks-dir DIR"),
        (["--tasks", CHOICE, "--tasks-dir", "scratch/tasks"], f"the task {CHOICE} reads questions.jsonl, which is not"),
        (["--tasks", "no_such", "--tasks-dir", "scratch/tasks"], "there is no task 'no_such'"),
    ],
)
def test_tasks_without_data_are_refused_before_anything_starts(
    replaceme: Run, model: Path, text: Path, tmp_path: Path, options: list[str], words: str
) -> None:
    (write_tasks(tmp_path / "scratch" / "tasks") / "questions.jsonl").unlink()
    for command in (["compress", model, "--ratio", "0.5", "--out", "out", "--calibration", text], ["evaluate", model]):
        done = replaceme(*command, *options)
        assert done.exit_code == 2, done.stderr
        assert words in done.stderr
        assert done.stdout == ""


@pytest.mark.parametrize(
    ("calibration", "words"),
    [
        ("nowhere.txt", "there is no file nowhere.txt"),
        ("builtin:nothing", "no built-in text"),
        ("org/name/more", "there is no file org/name/more"),
        ("nowhere=0.5.txt", "there is no file nowhere=0.5.txt"),
        ("self-generated", "at least one source is a text"),
        ("a model/config.json", "must end in .txt or .jsonl"),
        ("scratch", "there is no file"),
    ],
)
def test_bad_calibration(replaceme: Run, model: Path, calibration: str, words: str) -> None:
    done = replaceme("compress", model, "--out", "out", "--ratio", "0.5", "--calibration", calibration)
    assert done.exit_code == 2
    assert words in done.stderr


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("{", "is not valid JSON"),
        ("[]", "must hold a JSON object"),
        (json.dumps({**CONFIG, "model_type": "mamba"}), "'mamba' is not supported"),
        (json.dumps({**CONFIG, "auto_map": {}}), "auto_map"),
    ],
)
def test_bad_models(replaceme: Run, model: Path, text: Path, config: str, words: str) -> None:
    (model / "config.json").write_text(config)
    done = replaceme("compress", model, "--out", "out", "--ratio", "0.5", "--calibration", text)
    assert done.exit_code == 2
    assert words in done.stderr


def test_only_pickles(replaceme: Run, model: Path, text: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    done = replaceme("compress", model, "--out", "out", "--ratio", "0.5", "--calibration", text)
    assert done.exit_code == 2
    assert "pytorch_model.bin" in done.stderr


def test_out_must_not_exist(replaceme: Run, model: Path, text: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    done = replaceme("compress", model, "--out", "out", "--ratio", "0.5", "--calibration", text, "--json")
    assert done.exit_code == 2
    assert json.loads(done.stdout)["error"]["field"] == "out"
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a model", "--text", "nowhere.txt"], "there is no file nowhere.txt"),
        (["nowhere", "--text", "some text.txt"], "nowhere is not a directory"),
        (["a model", "--text", "some text.txt", "--samples", "0"], "--samples"),
        (["a model", "--text", "some text.txt", "--device", "?"], "device"),
        ([], "MODEL..."),
        (["a model", "--text", "builtin:none"], "there is no built-in text"),
    ],
)
def test_evaluate_refuses(replaceme: Run, model: Path, text: Path, arguments: list[str], words: str) -> None:
    done = replaceme("evaluate", *arguments)
    assert done.exit_code == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


INSTALL = "install them with: pip install 'replaceme[local]'"
COMMANDS = (
    ("compress", "nowhere", "--out", "deep/out", "--ratio", "0.5", "--calibration", "nowhere.txt"),
    ("evaluate", "nowhere", "--text", "nowhere.txt"),
)


@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda arguments: arguments[0])
def test_missing_libraries_are_reported_before_anything_is_read_or_written(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    without_torch = "import sys; sys.modules['torch'] = None; from api.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", without_torch, *arguments, "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    sentence = f"replaceme {arguments[0]} needs libraries that are not installed (torch); {INSTALL}"
    assert done.stderr == f"error: {sentence}\n"
    assert json.loads(done.stdout)["error"]["message"] == sentence
    assert list(tmp_path.iterdir()) == []


def test_a_runner_of_the_operators_own_needs_no_libraries_here(
    replaceme: Run, model: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    done = replaceme("evaluate", model, "--text", text)
    assert done.exit_code == 0, done.stderr
