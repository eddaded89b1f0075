"""`compress` and `evaluate` with models and texts of the Hub: what the runner is sent, and what is refused."""

import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from benchmarks.harness.fake_hub.access import READ_TOKEN, STRANGER_TOKEN
from benchmarks.harness.fake_hub.server import FakeHub
from replaceme_core.errors import (
    BrokenModel,
    GatedRepository,
    HubUnreachable,
    InvalidInput,
    OutOfSpace,
    RepositoryNotFound,
    UnknownRepository,
    UnsafeModel,
)
from replaceme_core.hub.port import RepositoryKind
from replaceme_core.local.compress import Outcome, compress
from replaceme_core.local.evaluate import evaluate
from replaceme_core.local.reproduce import heal, reproduce
from replaceme_core.settings import Settings
from tests.fakes import local_runner
from tests.fixtures.cli.local import sent
from tests.fixtures.models.tiny import save_tiny

ROWS = b'{"text": "a row of words"}\n' * 4
Make = Callable[..., Settings]
Compress = Callable[..., Outcome]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    directory = save_tiny(tmp_path_factory.mktemp("model") / "tiny")
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture
def make_settings(fake_hub: FakeHub, tmp_path: Path) -> Make:
    def make(token: str | None = READ_TOKEN, **more: object) -> Settings:
        given = {"data": tmp_path / "data", "hub": fake_hub.url, "hub_read_token": token, "sandbox": "none"}
        runner = (sys.executable, local_runner.__file__, "good")
        return Settings.model_validate({**given, "runner_command": runner, **more})

    return make


@pytest.fixture
def run(tmp_path: Path) -> Compress:
    return partial(compress, ratio=0.5, calibration="builtin:code", out=tmp_path / "out")


def test_model_and_text_of_the_hub_are_pinned(
    fake_hub: FakeHub, files: dict[str, bytes], make_settings: Make, tmp_path: Path
) -> None:
    model = fake_hub.add_model("acme/tiny", files).oid
    text = fake_hub.add_dataset("acme/text", {"test.jsonl": ROWS, "train.jsonl": ROWS}).oid
    seen: list[tuple[str, float]] = []
    outcome = compress(
        "acme/tiny",
        ratio=0.5,
        calibration={"dataset": "acme/text", "split": "test"},
        out=tmp_path / "out",
        settings=make_settings(),
        on_progress=lambda stage, overall, eta: seen.append((stage, overall)),
    )
    request = sent(outcome.directory)
    spec, paths = request["spec"], request["calibration_paths"]
    assert outcome.model.model_dump() == spec["model"] == {"repo_id": "acme/tiny", "revision": model}
    assert spec["calibration"]["revision"] == text
    assert request["hub"] == fake_hub.url
    assert [path.name for path in Path(paths[0]).iterdir()] == ["test.jsonl"], "no file of another split is downloaded"
    assert sorted(path.name for path in Path(request["model_directory"]).iterdir()) == sorted(files)
    assert list(dict.fromkeys(name for name, _ in seen))[:3] == ["download", "starting", "calibrate"]
    assert [overall for _, overall in seen] == sorted(overall for _, overall in seen)


def test_a_directory_goes_before_the_hub_and_needs_none(
    fake_hub: FakeHub,
    files: dict[str, bytes],
    make_settings: Make,
    run: Compress,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    directory = Path("acme/tiny")
    directory.mkdir(parents=True)
    for name, content in files.items():
        (directory / name).write_bytes(content)
    outcome = run("acme/tiny", settings=make_settings())
    request = sent(outcome.directory)
    assert request["model_directory"] == str(directory.resolve())
    assert request["hub"] is None
    assert (outcome.model.repo_id, outcome.model.revision) == ("local/tiny", None)
    assert fake_hub.seen == []
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("changed", ["model", "text", "hub"])
def test_what_is_changed_during_the_run_makes_no_result(
    files: dict[str, bytes], make_settings: Make, run: Compress, tmp_path: Path, changed: str
) -> None:
    directory, text = tmp_path / "hub" / "acme" / "tiny", tmp_path / "text.txt"
    directory.mkdir(parents=True)
    for name, content in files.items():
        (directory / name).write_bytes(content)
    text.write_text("words")
    place = text if changed == "text" else directory / "model.safetensors"

    def change(stage: str, overall: float, eta: float | None) -> None:
        if stage == "calibrate":
            place.write_bytes(b"other")

    model = "acme/tiny" if changed == "hub" else directory
    settings = make_settings(hub=f"dir:{tmp_path}/hub")
    with pytest.raises((InvalidInput, RepositoryNotFound), match="was changed"):
        run(model, calibration=text, settings=settings, on_progress=change)
    assert list(tmp_path.glob("*out*")) == []


@pytest.mark.parametrize("command", ["reproduce", "heal"])
def test_a_result_is_not_removed_from_the_cache_while_the_runner_reads_it(
    fake_hub: FakeHub, files: dict[str, bytes], make_settings: Make, run: Compress, tmp_path: Path, command: str
) -> None:
    """Another process needs space meanwhile, which only the downloads in use could give."""
    fake_hub.add_model("acme/tiny", files)
    fake_hub.add_model("acme/other", {**files, "model.safetensors": files["model.safetensors"] + b"x"})
    made = run("acme/tiny", settings=make_settings())
    record = {**made.report, "spec": sent(made.directory)["spec"]}
    fake_hub.add_model("acme/result", {**files, "replaceme.json": json.dumps(record).encode()})
    size = sum(map(len, files.values()))
    settings = make_settings(data=tmp_path / "small", hub_cache_bytes=int(2.5 * size))
    kept: list[bool] = []

    def meanwhile(stage: str, overall: float, eta: float | None) -> None:
        if stage == "calibrate" and not kept:
            hub = settings.open_hub()
            other = hub.resolve("acme/other", kind=RepositoryKind.MODEL)
            with pytest.raises(OutOfSpace):
                hub.download(other, tuple(files))
            kept.append(True)

    if command == "reproduce":
        reproduce("acme/result", settings=settings, on_progress=meanwhile)
    else:
        heal("acme/result", out=tmp_path / "healed", heal={"tokens": 4096}, settings=settings, on_progress=meanwhile)
    assert kept


def test_evaluate_with_a_revision_of_a_model_and_a_text_of_the_hub(
    fake_hub: FakeHub, files: dict[str, bytes], make_settings: Make
) -> None:
    first = fake_hub.add_model("acme/tiny", files).oid
    fake_hub.add_model("acme/tiny", {**files, "more.txt": b"more"})
    commit = fake_hub.add_dataset("acme/text", {"test.jsonl": ROWS, "train.jsonl": ROWS}).oid
    found = evaluate([f"acme/tiny@{first}", "acme/tiny"], text="acme/text", settings=make_settings())
    assert [one.name for one in found.models] == [f"acme/tiny@{first}", "acme/tiny"]
    assert found.models[0].revision == first
    assert found.models[1].revision not in (first, None)
    request = found.models[0].report["request"]
    assert isinstance(request, dict)
    assert (request["builtin"], request["source"]["revision"]) == (None, commit)
    assert [path.name for path in Path(request["text_path"]).iterdir()] == ["test.jsonl"]
    assert found.text == "acme/text"
    with pytest.raises(InvalidInput, match="no split 'validation'"):
        evaluate(["acme/tiny"], text={"dataset": "acme/text", "split": "validation"}, settings=make_settings())


@pytest.mark.parametrize(("name", "option"), [("rows.jsonl", "column"), ("builtin:instructions", "template")])
def test_evaluate_reads_a_text_on_this_machine_with_its_options(
    files: dict[str, bytes], make_settings: Make, tmp_path: Path, name: str, option: str
) -> None:
    directory = tmp_path / "tiny"
    directory.mkdir()
    for file, content in files.items():
        (directory / file).write_bytes(content)
    (tmp_path / "rows.jsonl").write_bytes(ROWS)
    text = {"dataset": name if name.startswith("builtin:") else tmp_path / name, option: "plain"}
    request = evaluate([directory], text=text, settings=make_settings()).models[0].report["request"]
    assert isinstance(request, dict)
    assert request["source"][option] == "plain"


def test_gated_models(fake_hub: FakeHub, files: dict[str, bytes], make_settings: Make, run: Compress) -> None:
    """Those who may read one get a warning that its conditions hold; others get what is missing. No token is shown."""
    fake_hub.add_model("acme/tiny", files)
    fake_hub.store.repository("model", "acme/tiny").gated = True
    for token in (STRANGER_TOKEN, None):
        with pytest.raises(GatedRepository, match="accept its conditions") as refused:
            run("acme/tiny", settings=make_settings(token))
        assert "REPLACEME_HUB_READ_TOKEN" in refused.value.message
        assert STRANGER_TOKEN not in refused.value.explained
    outcome = run("acme/tiny", settings=make_settings())
    assert [one.code for one in outcome.warnings] == ["gated"]
    assert READ_TOKEN not in (outcome.directory / "replaceme.json").read_text()


def test_what_is_refused_before_anything_large_is_downloaded(
    fake_hub: FakeHub, files: dict[str, bytes], make_settings: Make, run: Compress, tmp_path: Path
) -> None:
    weights = files["model.safetensors"]
    fake_hub.add_model("acme/broken", {**files, "model.safetensors": b"\xff" * 8 + weights[8:]})
    fake_hub.add_model("acme/pickled", {"config.json": files["config.json"], "pytorch_model.bin": b"x"})
    looked_up = "there is no directory {} here, and on the Hub"
    cases: list[tuple[str, type[Exception], str]] = [
        ("acme/broken", BrokenModel, ""),
        ("acme/pickled", UnsafeModel, "pytorch_model.bin"),
        ("acme/broken@no-such", UnknownRepository, looked_up.format("acme/broken@no-such")),
        *((name, InvalidInput, "") for name in ("acme", "a/b/c", "a/b c", "../tiny", "acme/tiny@a@\x00")),
    ]
    for name, kind, words in cases:
        with pytest.raises(kind, match=re.escape(words) or None):
            run(name, settings=make_settings())
    whole = [one for one in fake_hub.seen if one.path.endswith("model.safetensors") and one.range is None]
    assert [one for one in whole if one.method == "GET"] == []
    with pytest.raises(HubUnreachable, match=looked_up.format("acme/tiny")):
        run("acme/tiny", settings=make_settings(hub="http://127.0.0.1:9"))
    assert list(tmp_path.glob("out*")) == []


def test_a_misspelled_result_is_said_to_be_no_directory(fake_hub: FakeHub, make_settings: Make) -> None:
    with pytest.raises(RepositoryNotFound, match="there is no directory acme/resutl here, and on the Hub"):
        reproduce("acme/resutl", settings=make_settings())
