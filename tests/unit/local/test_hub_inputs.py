"""`compress` and `evaluate` with models and texts of the Hub: what the runner is sent, and what is refused."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness.fake_hub.access import READ_TOKEN, STRANGER_TOKEN
from benchmarks.harness.fake_hub.server import FakeHub
from replaceme_core.errors import (
    BrokenModel,
    GatedRepository,
    HubUnreachable,
    InvalidInput,
    UnknownRepository,
    UnsafeModel,
)
from replaceme_core.local.compress import compress
from replaceme_core.local.evaluate import evaluate
from replaceme_core.settings import Settings
from tests.fakes import local_runner
from tests.fixtures.models.tiny import save_tiny

ROWS = b'{"text": "a row of words"}\n' * 4
Make = Callable[..., Settings]


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


def sent(out: Path) -> dict[str, Any]:
    """The request that the runner was sent."""
    request: dict[str, Any] = json.loads((out / "replaceme.json").read_text())["request"]
    return request


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


def test_a_revision_of_a_model_is_named_behind_it(
    fake_hub: FakeHub, files: dict[str, bytes], make_settings: Make, tmp_path: Path
) -> None:
    first = fake_hub.add_model("acme/tiny", files).oid
    fake_hub.add_model("acme/tiny", {**files, "more.txt": b"more"})
    found = evaluate([f"acme/tiny@{first}", "acme/tiny"], settings=make_settings())
    assert [one.name for one in found.models] == [f"acme/tiny@{first}", "acme/tiny"]
    assert found.models[0].revision == first
    assert found.models[1].revision not in (first, None)
    with pytest.raises(UnknownRepository, match="there is no directory acme/tiny@no-such here, and on the Hub"):
        compress("acme/tiny@no-such", ratio=0.5, calibration="builtin:code", out="out", settings=make_settings())


def test_a_directory_goes_before_the_hub_and_needs_none(
    fake_hub: FakeHub, files: dict[str, bytes], make_settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    directory = Path("acme/tiny")
    directory.mkdir(parents=True)
    for name, content in files.items():
        (directory / name).write_bytes(content)
    outcome = compress("acme/tiny", ratio=0.5, calibration="builtin:code", out="out", settings=make_settings())
    request = sent(outcome.directory)
    assert request["model_directory"] == str(directory.resolve())
    assert request["hub"] is None
    assert (outcome.model.repo_id, outcome.model.revision) == ("local/tiny", None)
    assert fake_hub.seen == []
    assert not (tmp_path / "data").exists()


def test_a_text_of_the_hub_to_measure_on(
    fake_hub: FakeHub, files: dict[str, bytes], make_settings: Make, tmp_path: Path
) -> None:
    fake_hub.add_model("acme/tiny", files)
    commit = fake_hub.add_dataset("acme/text", {"test.jsonl": ROWS, "train.jsonl": ROWS}).oid
    found = evaluate(["acme/tiny"], text="acme/text", settings=make_settings())
    request = found.models[0].report["request"]
    assert isinstance(request, dict)
    assert request["builtin"] is None
    assert request["data_set"]["revision"] == commit
    assert [path.name for path in Path(request["text_path"]).iterdir()] == ["test.jsonl"]
    assert found.text == "acme/text"
    with pytest.raises(InvalidInput, match="no split 'validation'"):
        evaluate(["acme/tiny"], text={"dataset": "acme/text", "split": "validation"}, settings=make_settings())


def test_gated_models(fake_hub: FakeHub, files: dict[str, bytes], make_settings: Make, tmp_path: Path) -> None:
    """Those who may read one get a warning that its conditions hold; others get what is missing. No token is shown."""
    fake_hub.add_model("acme/tiny", files)
    fake_hub.store.repository("model", "acme/tiny").gated = True
    call = {"ratio": 0.5, "calibration": "builtin:code", "out": tmp_path / "out"}
    for token in (STRANGER_TOKEN, None):
        with pytest.raises(GatedRepository, match="accept its conditions") as refused:
            compress("acme/tiny", settings=make_settings(token), **call)  # type: ignore[arg-type]
        assert "REPLACEME_HUB_READ_TOKEN" in refused.value.message
        assert STRANGER_TOKEN not in refused.value.explained
    assert not (tmp_path / "out").exists()
    outcome = compress("acme/tiny", settings=make_settings(), **call)  # type: ignore[arg-type]
    assert [one.code for one in outcome.warnings] == ["gated"]
    assert READ_TOKEN not in (outcome.directory / "replaceme.json").read_text()


def test_nothing_large_is_downloaded_of_a_model_that_cannot_be_loaded(
    fake_hub: FakeHub, files: dict[str, bytes], make_settings: Make, tmp_path: Path
) -> None:
    """The headers are read first."""
    weights = files["model.safetensors"]
    fake_hub.add_model("acme/broken", {**files, "model.safetensors": b"\xff" * 8 + weights[8:]})
    fake_hub.add_model("acme/pickled", {"config.json": files["config.json"], "pytorch_model.bin": b"x"})
    call = {"ratio": 0.5, "calibration": "builtin:code", "out": tmp_path / "out", "settings": make_settings()}
    with pytest.raises(BrokenModel):
        compress("acme/broken", **call)  # type: ignore[arg-type]
    with pytest.raises(UnsafeModel, match=r"pytorch_model\.bin"):
        compress("acme/pickled", **call)  # type: ignore[arg-type]
    whole = [one for one in fake_hub.seen if one.path.endswith("model.safetensors") and one.range is None]
    assert [one for one in whole if one.method == "GET"] == []
    assert list(tmp_path.glob("out*")) == []


def test_a_hub_that_is_not_there(make_settings: Make, tmp_path: Path) -> None:
    settings = make_settings(hub="http://127.0.0.1:9")
    with pytest.raises(HubUnreachable, match="there is no directory acme/tiny here, and on the Hub"):
        compress("acme/tiny", ratio=0.5, calibration="builtin:code", out=tmp_path / "out", settings=settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["acme", "acme/tiny/more", "acme/ti ny", "../tiny", "acme/tiny@a@\x00"])
def test_what_is_neither_a_directory_nor_a_name(make_settings: Make, tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInput):
        compress(name, ratio=0.5, calibration="builtin:code", out=tmp_path / "out", settings=make_settings())
