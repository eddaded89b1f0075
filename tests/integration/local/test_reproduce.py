"""`reproduce` with a runner without a model: what it starts from, what it refuses, its warnings and exit codes."""

import json
from importlib.metadata import version
from pathlib import Path
from platform import python_version

import pytest
from typer.testing import Result

from replaceme_core.hub.files import sha256_of
from tests.fakes.local_runner import REPORT
from tests.fixtures.cli.local import Run, left_over, sent

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


@pytest.fixture
def reproduce(replaceme: Run, result: Path, model: Path, text: Path) -> Run:
    """Reproduces the result, whose record is changed by the keyword arguments, with the usual model and text."""

    def run(*options: str | Path, mode: str = "good", **fields: object) -> Result:
        record = json.loads((result / "replaceme.json").read_text())
        (result / "replaceme.json").write_text(json.dumps({**record, **fields}))
        return replaceme("reproduce", result, "--model", model, "--text", text, *options, mode=mode)

    return run


def test_the_same_bytes(reproduce: Run, tmp_path: Path) -> None:
    done = reproduce()
    assert done.exit_code == 0, done.stderr
    assert "the same bytes: all 3 tensors" in done.stdout
    assert "warning" not in done.stderr
    assert set(left_over(tmp_path)) == {"result"}, "what came out is not kept"


def test_the_recorded_specification_is_carried_out(
    reproduce: Run, result: Path, model: Path, text: Path, tmp_path: Path
) -> None:
    """But a search is not repeated: the depth that it has found is made again, which is one of four blocks."""
    spec = {**SPEC, "ratio": {"max": 0.5}, "gate": {"divergence": {"max": 1.0}}}
    done = reproduce("--out", "out", spec=spec)
    assert done.exit_code == 0, done.stderr
    request = sent(tmp_path / "out")
    assert request["model_directory"] == str(model)
    assert request["calibration_paths"] == [str(text)]
    assert request["compare_with"] == str(result)
    spec = request["spec"]
    assert (spec["ratio"], spec["gate"]) == (0.25, None)
    for part in ("calibration", "compute", "method"):
        assert spec[part].items() >= SPEC[part].items()  # type: ignore[attr-defined]
    assert (spec["evaluation"]["enabled"], spec["output"]["repo_id"], spec["labels"]) == (False, None, {})


def test_tensors_that_differ(reproduce: Run) -> None:
    done = reproduce(mode="differs")
    assert done.exit_code == 9, done.stderr
    for words in ("1 of 3 tensors differ", "model.norm.weight", "2 of 8", "0.25"):
        assert words in done.stdout
    answer = json.loads(reproduce("--json", mode="differs").stdout)
    assert (answer["same"], answer["differing"][0]["largest"], answer["warnings"]) == (False, 0.5, [])


def test_other_versions_and_another_device_are_warned_of(reproduce: Run) -> None:
    done = reproduce(
        "--json",
        versions={"python": "3.1.4", "torch": version("torch"), "no-such-library": "1.0"},
        device={"type": "cuda", "hardware": "A Processor"},
        code={"digest": "d" * 64, "commit": "e" * 40},
        tokens={"fit": "0" * 64},
        removed_blocks=[1],
        spec={**SPEC, "method": {"name": "auto", "time_budget_seconds": 60.0}},
    )
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


def test_a_version_of_no_library_is_warned_of(reproduce: Run) -> None:
    done = reproduce("--json", versions={"": "1"})
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["warnings"] == [" is not installed here; the result was made with 1"]


def test_a_search_that_found_nothing_cannot_be_made_again(reproduce: Run) -> None:
    spec = {**SPEC, "ratio": {"max": 0.5}, "gate": {"divergence": {"max": 1.0}}}
    for removed in ([], None, "1"):
        done = reproduce(removed_blocks=removed, kept_blocks=[], spec=spec)
        assert (done.exit_code, "does not say which blocks the search has removed" in done.stderr) == (2, True)


def test_healing_needs_a_result_that_no_training_has_made_better(
    replaceme: Run, result: Path, model: Path, text: Path, tmp_path: Path
) -> None:
    """One whose training was not kept is what it was without, and may be trained otherwise."""
    record = json.loads((result / "replaceme.json").read_text())
    record["spec"] = {**SPEC, "heal": {"tokens": 4096, "learning_rate": 1.0}}
    options = ("--text", text, "--heal-tokens", "8192")
    for file in model.iterdir():
        (result / file.name).write_bytes(file.read_bytes())
    for is_kept, code in ((True, 2), (False, 0)):
        (result / "replaceme.json").write_text(json.dumps({**record, "healing": {"is_kept": is_kept}}))
        done = replaceme("heal", result, "--out", tmp_path / "healed", "--teacher", model, *options)
        assert (done.exit_code, "was trained already" in done.stderr) == (code, is_kept), done.stderr
    done = replaceme("heal", result, "--out", tmp_path / "again", *options)
    assert done.exit_code == 2
    assert "name that directory with --teacher" in " ".join(done.stderr.split())
    healing = ("heal", result, "--out", tmp_path / "again", "--teacher", model, *options)
    for changed, words in (
        ({"removed_blocks": []}, "does not say which blocks are gone"),
        ({"result": {"model.safetensors": "0" * 64}}, "model.safetensors is not the recorded file"),
    ):
        (result / "replaceme.json").write_text(json.dumps({**record, **changed}))
        done = replaceme(*healing)
        assert (done.exit_code, words in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize("options", [(), ("--heal-dataset", "other.txt")], ids=["no text", "another text"])
def test_what_an_earlier_training_has_read_is_not_read_again(
    replaceme: Run, result: Path, model: Path, text: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    record = json.loads((result / "replaceme.json").read_text())
    record["spec"] = {**SPEC, "heal": {"tokens": 4096, "dataset": {"dataset": "file:earlier.txt"}}}
    record["calibration_texts"].append({"name": "file:earlier.txt", "files": {"earlier.txt": "0" * 64}})
    (result / "replaceme.json").write_text(json.dumps({**record, "healing": {"is_kept": False}}))
    for file in model.iterdir():
        (result / file.name).write_bytes(file.read_bytes())
    (tmp_path / "other.txt").write_text("other words")
    others = [tmp_path / one if one.endswith(".txt") else one for one in options]
    named = ("--teacher", model, "--text", text, "--heal-tokens", "8192", *others)
    done = replaceme("heal", result, "--out", tmp_path / "healed", *named)
    assert done.exit_code == 0, done.stderr
    assert sent(tmp_path / "healed")["calibration_paths"] == list(map(str, (text, *others[1:])))


def test_what_is_missing_is_asked_for(replaceme: Run, result: Path, model: Path, text: Path, tmp_path: Path) -> None:
    for arguments, words in (
        ((result, "--text", text), "name that directory with --model"),
        ((result, "--model", model), "file:some text.txt is a file; name it with --text"),
        ((result, "--model", model, "--text", text, "--text", text), "more often than the result has texts"),
        ((result, "--model", model, "--text", tmp_path / "no.txt"), "there is no file"),
        ((model,), "has no replaceme.json, so it is no result of this tool"),
        ((result, "--model", tmp_path, "--text", text), "has no file 'config.json', which is recorded"),
        ((result, "--model", tmp_path / "no", "--text", text), "there is no directory"),
    ):
        done = replaceme("reproduce", *arguments)
        assert done.exit_code == 2, done.stderr
        assert words in " ".join(done.stderr.split())


def test_a_directory_of_images_is_asked_for_as_one(reproduce: Run, replaceme: Run, result: Path, model: Path) -> None:
    spec = {**SPEC, "calibration": {"dataset": "file:photos/", "samples": 8}}
    reproduce(spec=spec)
    done = replaceme("reproduce", result, "--model", model)
    assert (done.exit_code, "file:photos/ is a directory; name it with --text" in " ".join(done.stderr.split())) == (
        2,
        True,
    )


def test_other_files_than_the_recorded_ones_are_refused(reproduce: Run, model: Path, text: Path) -> None:
    for file, content in ((text, b"words"), (model / "model.safetensors", b"weights")):
        file.write_bytes(b"other")
        done = reproduce()
        assert (done.exit_code, f"{file.name} is not the recorded file" in done.stderr) == (2, True)
        file.write_bytes(content)
    for name in ("../some text.txt", "/etc/hostname", "a/../../x"):
        done = reproduce(model={name: "0" * 64})
        assert done.exit_code == 2
        assert "which is recorded" in done.stderr, "no file elsewhere is looked at"


def test_a_record_that_cannot_be_carried_out(reproduce: Run) -> None:
    outside = {**SPEC, "calibration": {"dataset": "file:../../etc/passwd"}}
    for spec in (None, outside, {**SPEC, "ratio": "0.25"}, {**SPEC, "from_a_later_version": 1}):
        done = reproduce(spec=spec)
        assert done.exit_code == 2, done.stderr
        assert "has no specification that this version can carry out: spec" in done.stderr
