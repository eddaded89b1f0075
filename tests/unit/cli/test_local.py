"""`compress` and `evaluate` with a runner without a model: requests, output, exit codes, left-over files."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from replaceme_core.hub.port import REPOSITORY
from replaceme_core.local.inputs import clean_name
from tests.fixtures.cli.local import Run, environment, left_over
from tests.fixtures.evaluation.local_tasks import CHOICE, ROLLING, write_tasks


def test_compress_prints_one_object(replaceme: Run, model: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = replaceme("compress", model, "--out", out, "--ratio", "0.25", "--calibration", text, "--json")
    assert done.exit_code == 0, done.stderr
    answer = json.loads(done.stdout)
    assert list(answer) == [
        "removed_blocks",
        "kept_blocks",
        "method",
        "candidates",
        "stages",
        "before",
        "after",
        "warnings",
    ]
    assert answer["removed_blocks"] == [2]
    assert answer["kept_blocks"] == [0, 1, 3]
    assert answer["after"]["perplexity"] == 60.6
    assert "calibrate" in done.stderr
    assert (out / "replaceme.json").is_file()
    assert left_over(tmp_path) == []


def test_compress_sends_its_options(replaceme: Run, model: Path, text: Path, tmp_path: Path) -> None:
    options = ["--drop", "1-2", "--method", "drop", "--samples", "8", "--max-length", "64", "--seed", "7"]
    options += ["--device", "cpu", "--dtype", "float32", "--threads", "2", "--batch-size", "4", "--no-evaluate"]
    options += ["--self-generated", "0.25", "--evaluation-samples", "5"]
    done = replaceme("compress", model, "--out", "out", "--calibration", text.name, *options)
    assert done.exit_code == 0, done.stderr
    request = json.loads((tmp_path / "out" / "replaceme.json").read_text())["request"]
    assert request["model_directory"] == str(model)
    assert request["calibration_paths"] == [str(text), None], "and what the model generates"
    spec = request["spec"]
    assert spec["model"]["repo_id"] == "local/a-model"
    assert spec["drop"] == [1, 2]
    assert spec["ratio"] is None
    assert spec["method"]["name"] == "drop"
    assert spec["calibration"]["dataset"] == "file:some text.txt"
    assert [spec["calibration"][key] for key in ("samples", "max_length", "seed")] == [8, 64, 7]
    assert spec["calibration"]["self_generated"] == 0.25
    assert (spec["evaluation"]["enabled"], spec["evaluation"]["samples"]) == (False, 5)
    sent = {"device": "cpu", "dtype": "float32", "batch_size": 4, "threads": 2, "loading": "auto"}
    assert spec["compute"].items() >= sent.items()


def test_compress_sends_a_mix_of_sources(replaceme: Run, model: Path, text: Path, tmp_path: Path) -> None:
    """Two files of one name are named with their folders."""
    (tmp_path / "more").mkdir()
    other = tmp_path / "more" / text.name
    other.write_text("more words")
    sources = [f"{text}=0.5", str(other), "builtin:code=0.125", "self-generated=.25"]
    options = [part for source in sources for part in ("--calibration", source)]
    done = replaceme("compress", model, "--out", "out", "--ratio", "0.5", *options)
    assert done.exit_code == 0, done.stderr
    request = json.loads((tmp_path / "out" / "replaceme.json").read_text())["request"]
    assert request["calibration_paths"] == [str(text), str(other), None, None]
    assert request["spec"]["calibration"]["dataset"] is None
    sent = [(one["dataset"], one["self_generated"], one["share"]) for one in request["spec"]["calibration"]["sources"]]
    assert sent == [
        (f"file:{tmp_path.name}/{text.name}", False, 0.5),
        (f"file:more/{text.name}", False, None),
        ("builtin:code", False, 0.125),
        (None, True, 0.25),
    ]


def test_the_runner_receives_the_absolute_path_of_the_cache(replaceme: Run, model: Path, tmp_path: Path) -> None:
    base = ("compress", model, "--ratio", "0.25", "--calibration", "builtin:pydoc-topics")
    for out, options, expected in (("one", ("--cache", "kept"), str(tmp_path / "kept")), ("two", (), None)):
        done = replaceme(*base, "--out", out, *options)
        assert done.exit_code == 0, done.stderr
        request = json.loads((tmp_path / out / "replaceme.json").read_text())["request"]
        assert request["cache_directory"] == expected


def test_compress_prints_tables_for_people(replaceme: Run, model: Path, tmp_path: Path) -> None:
    done = replaceme("compress", model, "--out", "out", "--ratio", "0.25", "--calibration", "builtin:pydoc-topics")
    assert done.exit_code == 0, done.stderr
    for words in ("removed 1 of 4 blocks: 2", "Perplexity", "60.60", "+87.8 %", "written to out"):
        assert words in done.stdout


@pytest.mark.parametrize(
    ("mode", "exit_code", "words"),
    [
        ("input", 2, "12 tokens, 1024 are needed"),
        ("space", 3, "no space left"),
        ("bug", 1, "a library warns"),
        ("dies", 1, "exit status 3"),
    ],
)
def test_failures_of_the_runner(
    replaceme: Run, model: Path, text: Path, tmp_path: Path, mode: str, exit_code: int, words: str
) -> None:
    done = replaceme("compress", model, "--out", "out", "--ratio", "0.5", "--calibration", text, "--json", mode=mode)
    assert done.exit_code == exit_code, done.stderr
    assert words in done.stderr
    assert json.loads(done.stdout)["error"]["message"] in done.stderr
    assert not (tmp_path / "out").exists()
    assert left_over(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing(
    model: Path, text: Path, tmp_path: Path, scratch: Path, number: signal.Signals
) -> None:
    arguments = ["compress", model, "--out", tmp_path / "out", "--ratio", "0.5", "--calibration", text]
    process = subprocess.Popen(
        [sys.executable, "-m", "api.cli", *map(str, arguments)],
        env=environment("hangs", scratch),
        stderr=subprocess.PIPE,
        # a shell starts background commands with SIGINT ignored, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        deadline = time.monotonic() + 30
        while not list(tmp_path.glob(".out.*/.partial")):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, stderr
    assert b"Traceback" not in stderr
    assert left_over(tmp_path) == []


def test_evaluate_prints_one_object(replaceme: Run, model: Path, text: Path) -> None:
    done = replaceme("evaluate", model, "--text", text, "--json")
    assert done.exit_code == 0, done.stderr
    answer = json.loads(done.stdout)
    assert list(answer)[:6] == ["perplexity", "tokens", "parameters", "bytes", "tokens_per_second", "dtype"]
    assert answer["perplexity"] == 32.26
    assert (answer["hardware"], answer["text"]) == ("A Processor", str(text))
    shown = replaceme("evaluate", model, "--text", text).stdout
    assert "32.26" in shown
    assert "134,515,008" in shown


def test_evaluate_takes_several_models_and_built_in_text(replaceme: Run, model: Path, tmp_path: Path) -> None:
    other = shutil.copytree(model, tmp_path / "other")
    done = replaceme("evaluate", model, other, "--text", "builtin:code", "--json")
    assert done.exit_code == 0, done.stderr
    answer = json.loads(done.stdout)
    assert [one["model"] for one in answer["models"]] == [str(model), str(other)]
    request = answer["models"][0]["request"]
    assert (request["model_directory"], request["others"]) == (str(model), [str(other)])
    assert (request["text_path"], request["builtin"]) == (None, "builtin:code")
    done = replaceme("evaluate", model, other)
    assert done.exit_code == 0, done.stderr
    assert " ".join(done.stdout.splitlines()[1].split()) == f"{model.name} other", (
        "names, and not paths that are folded"
    )


def test_evaluate_sends_tasks(replaceme: Run, model: Path, tmp_path: Path) -> None:
    tasks = write_tasks(tmp_path / "scratch" / "tasks")
    options = ("--tasks", f"{CHOICE}, {ROLLING}", "--tasks-dir", tasks, "--task-limit", "5", "--few-shot", "0")
    done = replaceme("evaluate", model, *options, "--json")
    assert done.exit_code == 0, done.stderr
    sent = json.loads(done.stdout)["request"]
    assert (sent["tasks"], sent["tasks_directory"]) == ([CHOICE, ROLLING], str(tasks))
    assert (sent["task_limit"], sent["few_shot"]) == (5, 0)
    for wrong in (("--tasks", "piqa,piqa"), ("--tasks", "../x"), ("--tasks-dir", "none")):
        assert replaceme("evaluate", model, *wrong).exit_code == 2


@pytest.mark.parametrize(
    "name", ["plain", "a model", "v1..2", "-x-", "a--b", "x.git", ".hidden", "模型", "a" * 300, "x.", "___", "x-.git"]
)
def test_any_directory_name_becomes_a_valid_repository_name(name: str) -> None:
    cleaned = clean_name(Path("/models") / name)
    repository = f"local/{cleaned}"
    assert REPOSITORY.fullmatch(repository)
    assert ".." not in repository
    assert "--" not in repository
    assert not repository.endswith((".git", "-", "."))
