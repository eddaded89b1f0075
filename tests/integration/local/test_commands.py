"""`compress` and `evaluate` with a runner without a model: requests, output, refusals, exit codes, left-over files."""

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.harness.processes import WAIT_SECONDS, wait_until
from replaceme_core.errors import InvalidInput
from replaceme_core.hub.port import REPOSITORY
from replaceme_core.local.inputs import clean_name
from replaceme_core.local.run import Machine, ShownCourse, show_nothing
from replaceme_core.runner.inputs import Pinned
from replaceme_core.settings import Settings
from tests.fixtures.cli.local import CONFIG, RUNNER, Run, left_over, runner, sent
from tests.fixtures.evaluation.local_tasks import CHOICE, ROLLING, write_tasks
from tests.fixtures.service.serve import environment

Base = tuple[str | Path, ...]


@pytest.fixture
def base(model: Path, text: Path) -> Base:
    return ("compress", model, "--out", "out", "--ratio", "0.25", "--calibration", text)


def words_of(text: str) -> str:
    """Without the lines and the frames of a terminal."""
    return " ".join(text.replace("│", " ").split())


def test_compress_prints_one_object_or_tables(replaceme: Run, base: Base, tmp_path: Path) -> None:
    done = replaceme(*base, "--gate", "perplexity_ratio<=1.5", "--json", "--cache", "kept")
    assert done.exit_code == 0, done.stderr
    answer = json.loads(done.stdout)
    names = ["removed_blocks", "kept_blocks", "method", "candidates", "stages", "before", "after", "warnings", "gate"]
    assert list(answer) == names
    assert (answer["removed_blocks"], answer["kept_blocks"]) == ([2], [0, 1, 3])
    assert (answer["after"]["perplexity"], answer["gate"]["passed"]) == (60.6, True)
    assert "calibrate" in done.stderr
    assert left_over(tmp_path) == []
    assert sent(tmp_path / "out")["cache_directory"] == str(tmp_path / "kept")
    shutil.rmtree(tmp_path / "out")
    done = replaceme(*base)
    for words in ("removed 1 of 4 blocks: 2", "Perplexity", "60.60", "+87.8 %", "written to out"):
        assert words in done.stdout
    assert "load it with AutoModelForImageTextToText.from_pretrained" in done.stderr
    assert sent(tmp_path / "out")["cache_directory"] is None


def test_compress_sends_a_mix_of_sources(replaceme: Run, model: Path, text: Path, tmp_path: Path) -> None:
    """Two files of one name are named with their folders."""
    (tmp_path / "more").mkdir()
    other = tmp_path / "more" / text.name
    other.write_text("more words")
    sources = [f"{text}=0.5", str(other), "builtin:code=0.125", "self-generated=.25"]
    options = [part for source in sources for part in ("--calibration", source)]
    done = replaceme("compress", model, "--out", "out", "--ratio", "0.5", *options)
    assert done.exit_code == 0, done.stderr
    request = sent(tmp_path / "out")
    assert request["model_directory"] == str(model)
    assert request["calibration_paths"] == [str(text), str(other), None, None]
    assert request["spec"]["calibration"]["dataset"] is None
    found = [(one["dataset"], one["self_generated"], one["share"]) for one in request["spec"]["calibration"]["sources"]]
    assert found == [
        (f"file:{tmp_path.name}/{text.name}", False, 0.5),
        (f"file:more/{text.name}", False, None),
        ("builtin:code", False, 0.125),
        (None, True, 0.25),
    ]


def test_the_name_of_a_link_says_the_format_of_a_text(replaceme: Run, base: Base, text: Path, tmp_path: Path) -> None:
    """As in a cache of the Hub, whose files are links to names without a suffix."""
    link = text.rename(tmp_path / "0123abcd").with_name(text.name)
    link.symlink_to("0123abcd")
    done = replaceme(*base)
    assert done.exit_code == 0, done.stderr
    request = sent(tmp_path / "out")
    assert (request["calibration_paths"], request["spec"]["calibration"]["dataset"]) == (
        [str(link)],
        f"file:{link.name}",
    )


def test_a_result_that_misses_its_gate_is_kept(replaceme: Run, base: Base, tmp_path: Path) -> None:
    done = replaceme(*base, "--gate", "perplexity_ratio<=1.4", "--gate", "agreement >= 0.5")
    assert done.exit_code == 4, done.stderr
    assert "perplexity_ratio is 1.5, at most 1.4 is wanted; the result is kept in out" in words_of(done.stderr)
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["perplexity_ratio", "1.5", "at", "most", "1.4", "✗", "missed"] in rows
    gate = sent(tmp_path / "out")["spec"]["gate"]
    assert (gate["perplexity_ratio"], gate["agreement"]) == ({"min": None, "max": 1.4}, {"min": 0.5, "max": None})


def test_the_deepest_cut(replaceme: Run, base: Base, tmp_path: Path) -> None:
    done = replaceme(*base, "--ratio", "max:0.5", "--gate", "perplexity_ratio<=1.5", mode="searches")
    assert done.exit_code == 0, done.stderr
    assert sent(tmp_path / "out")["spec"]["ratio"] == {"max": 0.5}
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["1", "*", "(taken)", "1.500", "90.0", "%", "passed", "2.0", "s"] in rows
    assert ["2", "2.500", "–", "✗", "missed", "1.0", "s"] in rows


@pytest.mark.parametrize(
    ("mode", "exit_code", "words", "options"),
    [
        ("input", 2, "12 tokens, 1024 are needed", ()),
        ("space", 3, "no space left", ()),
        ("bug", 1, "a library warns", ()),
        ("dies", 1, "exit status 3", ()),
        ("ungated", 4, "did not judge the gate", ("--gate", "size_ratio<=0.9")),
    ],
)
def test_failures_of_the_runner(
    replaceme: Run, base: Base, tmp_path: Path, mode: str, exit_code: int, words: str, options: tuple[str, ...]
) -> None:
    done = replaceme(*base, *options, "--json", mode=mode)
    assert done.exit_code == exit_code, done.stderr
    assert words in done.stderr
    if not options:
        assert json.loads(done.stdout)["error"]["message"] in done.stderr
        assert not (tmp_path / "out").exists()
    assert left_over(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])  # SIGHUP: the terminal was closed
def test_a_signal_leaves_nothing(base: Base, tmp_path: Path, scratch: Path, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "api.cli", *map(str, base), "--out", tmp_path / "out"],
        env=environment(**runner("hangs", scratch)),
        stderr=subprocess.PIPE,
    )
    try:

        def is_at_work() -> bool:
            assert process.poll() is None
            return bool(list(tmp_path.glob(".out.*/.partial")))

        wait_until(is_at_work, what="a runner at work")
        process.send_signal(number)  # handled as SIGINT is
        _, stderr = process.communicate(timeout=WAIT_SECONDS)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, stderr
    assert b"Traceback" not in stderr
    assert left_over(tmp_path) == []


def test_evaluate_prints_one_object_or_a_table(
    replaceme: Run, model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runner of the operator's own needs no libraries here."""
    monkeypatch.setitem(sys.modules, "torch", None)
    done = replaceme("evaluate", model, "--text", text, "--json")
    assert done.exit_code == 0, done.stderr
    answer = json.loads(done.stdout)
    assert list(answer)[:6] == ["perplexity", "tokens", "parameters", "bytes", "tokens_per_second", "dtype"]
    assert [answer[name] for name in ("perplexity", "hardware", "text")] == [32.26, "A Processor", str(text)]
    shown = replaceme("evaluate", model, shutil.copytree(model, tmp_path / "other")).stdout
    assert shown.splitlines()[1].split() == [*model.name.split(), "other"], "names, and not paths that are folded"
    assert "32.26" in shown and "134,515,008" in shown


def test_evaluate_takes_several_models_and_tasks(replaceme: Run, model: Path, tmp_path: Path) -> None:
    other = shutil.copytree(model, tmp_path / "other")
    tasks = write_tasks(tmp_path / "scratch" / "tasks")
    options = ("--tasks", f"{CHOICE}, {ROLLING}", "--tasks-dir", tasks, "--task-limit", "5", "--few-shot", "0")
    done = replaceme("evaluate", model, other, "--text", "builtin:code", *options, "--json")
    assert done.exit_code == 0, done.stderr
    answer = json.loads(done.stdout)
    assert [one["model"] for one in answer["models"]] == [str(model), str(other)]
    expected = {
        **{"model_directory": str(model), "others": [str(other)], "text_path": None, "builtin": "builtin:code"},
        **{"tasks": [CHOICE, ROLLING], "tasks_directory": str(tasks), "task_limit": 5, "few_shot": 0},
    }
    assert answer["models"][0]["request"].items() >= expected.items()


NO_NUMBER = "expected a number such as 0.25, or max:0.5"
REFUSED = {
    "nowhere": "nowhere is not a directory",
    "scratch": "no config.json",
    "scratch/pickled": "pytorch_model.bin",
    "scratch/broken": "is not valid JSON",
    "scratch/custom": "auto_map",
    "MODEL --out scratch": "scratch already exists",
    "MODEL --ratio much": NO_NUMBER,
    "MODEL --ratio max:nan": NO_NUMBER,
    "MODEL --ratio max:0.5": "give gate, such as",
    "MODEL --groups 2": "in at most 1 group,",
    "MODEL --drop 4": "there is no block 4",
    "MODEL --drop 1,x": "--drop",
    "MODEL --method magic": "'--method'",
    "MODEL --calibration 'some text.txt'": "is given twice",
    "MODEL --calibration nowhere=0.5.txt": "there is no file nowhere=0.5.txt",
    "MODEL --calibration builtin:nothing": "no built-in text",
    "MODEL --calibration org/name/more": "there is no file org/name/more",
    "MODEL --calibration 'a model/config.json'": "must end in .txt or .jsonl",
    "MODEL --calibration scratch": "there is no file",
    "MODEL --gate perplexity_ratio<1.6": "expected a criterion such as",
    "MODEL --gate perplexity<=1.6": "gate.perplexity",
    f"MODEL --tasks {CHOICE}": "give --tasks-dir DIR",
    f"MODEL --tasks {CHOICE} --tasks-dir scratch/tasks": "reads questions.jsonl, which is not",
    "MODEL --tasks no_such --tasks-dir scratch/tasks": "there is no task 'no_such'",
    "evaluate": "MODEL...",
    "evaluate nowhere": "nowhere is not a directory",
    "evaluate MODEL --text nowhere.txt": "there is no file nowhere.txt",
    "evaluate MODEL --text builtin:none": "there is no built-in text",
    "evaluate MODEL --samples 0": "--samples",
    "evaluate MODEL --device ?": "device",
    "evaluate MODEL --tasks piqa,piqa": "such as piqa,sciq",
    "evaluate MODEL --tasks ../x --tasks-dir scratch": "../x",
    f"evaluate MODEL --tasks {CHOICE} --tasks-dir scratch/tasks": "questions.jsonl",
}
"""What is wrong in a call of `compress`, or of `evaluate` if it is named."""


def test_bad_input_is_refused_before_anything_starts(
    replaceme: Run, model: Path, text: Path, scratch: Path, tmp_path: Path
) -> None:
    (write_tasks(scratch / "tasks") / "questions.jsonl").unlink()
    custom = json.dumps({**CONFIG, "auto_map": {}})
    for bad, config in {"pickled": json.dumps(CONFIG), "broken": "{", "custom": custom}.items():
        (shutil.copytree(model, scratch / bad) / "config.json").write_text(config)
    (scratch / "pickled" / "model.safetensors").rename(scratch / "pickled" / "pytorch_model.bin")
    before = {path.name for path in tmp_path.rglob("*")}
    for command, words in REFUSED.items():
        arguments = [model.name if one == "MODEL" else one for one in shlex.split(command)]
        if arguments[0] != "evaluate":
            ratio = () if {"--ratio", "--drop"} & {*arguments} else ("--ratio", "0.25")
            arguments = ["compress", "--out", "out", "--calibration", text.name, *arguments, *ratio]
        done = replaceme(*arguments)
        assert (done.exit_code, done.stdout) == (2, ""), (command, done.output, done.exception)
        assert words in words_of(done.stderr), command
        assert "Traceback" not in done.stderr, command
        assert {path.name for path in tmp_path.rglob("*")} == before, command


def test_a_name_that_is_no_text_is_refused() -> None:
    done = subprocess.run([sys.executable, "-m", "api.cli", "evaluate", b"m\xf6"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        2,
        "error: an argument is no text in UTF-8; rename the file that it names\n",
    )


def test_the_home_directory_may_be_named(
    replaceme: Run, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shell knows it in words of their own only, and not in `--out=~/out`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert replaceme(*base, "--out", "~/mine").exit_code == 0
    assert (tmp_path / "mine").is_dir()


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "model.safetensors"])
def test_a_model_that_changes_during_the_run(model: Path, tmp_path: Path, name: str) -> None:
    """A directory of images may have what it likes beside it."""
    (model / "tokenizer_config.json").write_text("{}")
    images = tmp_path / "images"
    images.mkdir()
    (images / "tokenizer.json").symlink_to(RUNNER)
    machine = Machine(Settings(runner_command=(sys.executable,)), command="compress")
    given = Pinned(path=model), Pinned(path=images)
    with machine.fetched(given, ShownCourse({}, show_nothing)) as found:
        (images / "README.md").write_text("new")
    assert found == [model, images]
    with (
        pytest.raises(InvalidInput, match=r"a model was changed during the run; start again"),
        machine.fetched(given, ShownCourse({}, show_nothing)),
    ):
        (model / name).write_text(json.dumps({**CONFIG, "later": 1}))


@pytest.mark.parametrize(
    "name", ["plain", "a model", "v1..2", "-x-", "a--b", "x.git", ".hidden", "模型", "a" * 300, "x.", "___", "x-.git"]
)
def test_any_directory_name_becomes_a_valid_repository_name(name: str) -> None:
    cleaned = clean_name(Path("/models") / name)
    assert REPOSITORY.fullmatch(f"local/{cleaned}")
    assert not re.search(r"\.\.|--|(\.git|-|\.)$", cleaned)


def test_compress_writes_both(
    replaceme: Run, model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary, junit = tmp_path / "summary.md", tmp_path / "gate.xml"
    summary.write_text("what was there before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    compress = ("compress", model, "--ratio", "0.25", "--calibration", text, "--junit", junit)
    done = replaceme(*compress, "--out", "out", "--gate", "perplexity_ratio<=1.4")
    assert done.exit_code == 4, done.stderr
    assert ElementTree.fromstring(junit.read_text()).get("failures") == "1"
    assert summary.read_text().startswith("what was there before\n## Compression of ")
    assert "| removed | 1 block: 2 |" in summary.read_text()

    def fail(*_: object, **__: object) -> None:
        raise BrokenPipeError

    junit.unlink()
    with monkeypatch.context() as patch:
        patch.setattr("api.cli.local.print_json", fail)
        replaceme(*compress, "--out", "other", "--json")
    assert junit.exists(), "though nothing can be printed"
    done = replaceme(*compress, "--out", "none", "--junit", "none/gate.xml")
    assert done.exit_code == 2, "refused at once"
    assert not (tmp_path / "none").exists()
