"""`reproduce` with a runner without a model: what it starts from, what it refuses, its warnings and exit codes."""

import json
from importlib.metadata import version
from pathlib import Path
from platform import python_version

import pytest

from replaceme_core.hub.files import sha256_of
from tests.fakes.local_runner import REPORT
from tests.fixtures.cli.local import Run, left_over

SPEC = {
    "model": {"repo_id": "local/a-model", "revision": None},
    "ratio": 0.25,
    "calibration": {"dataset": "file:some text.txt", "samples": 8, "max_length": 64, "self_generated": 0.0},
    "method": {"name": "least_squares"},
    "evaluation": {"enabled": True},
    "output": {"repo_id": "org/out"},
    "compute": {"device": "cpu", "dtype": "float32", "batch_size": 4, "threads": 1, "loading": "whole"},
    "labels": {"team": "a"},
}


@pytest.fixture
def result(scratch: Path, model: Path, text: Path) -> Path:
    directory = scratch / "result"
    directory.mkdir()
    digests = {path.name: sha256_of(path) for path in sorted(model.iterdir())}
    record = {
        **REPORT,
        "spec": SPEC,
        "model": digests,
        "calibration_texts": [{"name": "file:some text.txt", "files": {text.name: sha256_of(text)}}],
        "versions": {"python": python_version(), "torch": version("torch")},
    }
    (directory / "replaceme.json").write_text(json.dumps(record))
    return directory


def change(result: Path, **fields: object) -> None:
    record = json.loads((result / "replaceme.json").read_text())
    (result / "replaceme.json").write_text(json.dumps({**record, **fields}))


def test_the_same_bytes(replaceme: Run, result: Path, model: Path, text: Path, tmp_path: Path) -> None:
    done = replaceme("reproduce", result, "--model", model, "--text", text)
    assert done.exit_code == 0, done.stderr
    assert "the same bytes: all 3 tensors" in done.stdout
    assert "warning" not in done.stderr
    assert set(left_over(tmp_path)) == {"result"}, "what came out is not kept"


def test_the_recorded_specification_is_carried_out(
    replaceme: Run, result: Path, model: Path, text: Path, tmp_path: Path
) -> None:
    """But a search is not repeated: the depth that it has found is made again, which is one of four blocks."""
    change(result, spec={**SPEC, "ratio": {"max": 0.5}, "gate": {"divergence": {"max": 1.0}}})
    done = replaceme("reproduce", result, "--model", model, "--text", text, "--out", "out")
    assert done.exit_code == 0, done.stderr
    request = json.loads((tmp_path / "out" / "replaceme.json").read_text())["request"]
    assert request["model_directory"] == str(model)
    assert request["calibration_paths"] == [str(text)]
    assert request["compare_with"] == str(result)
    spec = request["spec"]
    assert (spec["ratio"], spec["gate"]) == (0.25, None)
    for part in ("calibration", "compute", "method"):
        sent = SPEC[part]
        assert isinstance(sent, dict)
        assert spec[part].items() >= sent.items()
    assert (spec["evaluation"]["enabled"], spec["output"]["repo_id"], spec["labels"]) == (False, None, {})


def test_tensors_that_differ(replaceme: Run, result: Path, model: Path, text: Path) -> None:
    arguments = ("reproduce", result, "--model", model, "--text", text)
    done = replaceme(*arguments, mode="differs")
    assert done.exit_code == 9, done.stderr
    for words in ("1 of 3 tensors differ", "model.norm.weight", "2 of 8", "0.25"):
        assert words in done.stdout
    answer = json.loads(replaceme(*arguments, "--json", mode="differs").stdout)
    assert (answer["same"], answer["differing"][0]["largest"], answer["warnings"]) == (False, 0.5, [])


def test_other_versions_and_another_device_are_warned_of(replaceme: Run, result: Path, model: Path, text: Path) -> None:
    change(
        result,
        versions={"python": "3.1.4", "torch": version("torch"), "no-such-library": "1.0"},
        device={"type": "cuda", "hardware": "A Processor"},
        code={"digest": "d" * 64, "commit": "e" * 40},
        tokens={"fit": "0" * 64},
        removed_blocks=[1],
        spec={**SPEC, "method": {"name": "auto", "time_budget_seconds": 60.0}},
    )
    done = replaceme("reproduce", result, "--model", model, "--text", text, "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["warnings"] == [
        f"python is {python_version()} here; the result was made with 3.1.4",
        "no-such-library is not installed here; the result was made with 1.0",
        "its method had a limit of time, so it may choose otherwise at another speed",
        "device: type is cpu here; recorded is cuda",
        f"the code of replaceme is not the recorded one (commit {'e' * 40})",
        "the calibration tokens are not the recorded ones",
        "blocks [2] were removed; recorded is [1]",
    ]
    assert done.stderr.count("warning: ") == 7


def test_what_is_missing_is_asked_for(replaceme: Run, result: Path, model: Path, text: Path, tmp_path: Path) -> None:
    for arguments, words in (
        ((result, "--text", text), "name that directory with --model"),
        ((result, "--model", model), "file:some text.txt is a file; name it with --text"),
        ((result, "--model", model, "--text", text, "--text", text), "more often than the result has texts"),
        ((result, "--model", model, "--text", tmp_path / "no.txt"), "there is no file"),
        ((model,), "has no replaceme.json, so it is no result of this tool"),
        ((result, "--model", tmp_path, "--text", text), "has no file 'config.json', which the result was made from"),
    ):
        done = replaceme("reproduce", *arguments)
        assert done.exit_code == 2, done.stderr
        assert words in " ".join(done.stderr.split())


def test_other_files_than_the_recorded_ones_are_refused(replaceme: Run, result: Path, model: Path, text: Path) -> None:
    arguments = ("reproduce", result, "--model", model, "--text", text)
    text.write_text("other words")
    done = replaceme(*arguments)
    assert (done.exit_code, "some text.txt is not the file" in done.stderr) == (2, True)
    text.write_text("words")
    (model / "model.safetensors").write_bytes(b"other")
    done = replaceme(*arguments)
    assert (done.exit_code, "model.safetensors is not the file" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    "fields",
    [
        {"spec": {**SPEC, "calibration": {"dataset": "file:../../etc/passwd"}}},
        {"spec": {**SPEC, "ratio": "0.25"}},
        {"spec": None},
        {"spec": {**SPEC, "from_a_later_version": 1}},
    ],
    ids=str,
)
def test_a_record_that_cannot_be_carried_out(
    replaceme: Run, result: Path, model: Path, fields: dict[str, object]
) -> None:
    change(result, **fields)
    done = replaceme("reproduce", result, "--model", model)
    assert done.exit_code == 2, done.stderr
    assert "has no specification that this version can carry out: spec" in done.stderr


@pytest.mark.parametrize("name", ["../some text.txt", "/etc/hostname", "a/../../x"])
def test_a_record_looks_at_no_file_elsewhere(replaceme: Run, result: Path, model: Path, text: Path, name: str) -> None:
    change(result, model={name: "0" * 64})
    done = replaceme("reproduce", result, "--model", model, "--text", text)
    assert done.exit_code == 2
    assert "which the result was made from" in done.stderr
