"""Which files of a model's repository are downloaded. `tests/fixtures/hostile` has those that are refused."""

import json
from pathlib import Path

import pytest

from replaceme_core.errors import BrokenModel, UnsafeModel
from replaceme_core.hub.directory import DirectoryHub
from replaceme_core.hub.model_files import (
    check_listing,
    files_to_download,
    read_config,
    side_files,
    used_files,
    weight_files,
)
from replaceme_core.hub.port import RepositoryKind, Snapshot
from tests.fixtures.api.requests import put_model

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture
def hub(tmp_path: Path) -> DirectoryHub:
    return DirectoryHub(tmp_path / "hub")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return put_model(tmp_path / "hub", "org/name")


def snapshot_of(hub: DirectoryHub) -> Snapshot:
    return hub.resolve("org/name", kind=RepositoryKind.MODEL)


def test_weights_config_and_tokenizer(hub: DirectoryHub, model: Path) -> None:
    for name in ("tokenizer.json", "README.md", "modeling.py", "adapter_model.safetensors", "pytorch_model.bin"):
        (model / name).touch()
    (model / "onnx").mkdir()
    (model / "onnx" / SINGLE).touch()
    check_listing(snapshot_of(hub))
    assert files_to_download(snapshot_of(hub), hub) == ("README.md", "config.json", SINGLE, "tokenizer.json")


def test_all_terms_of_the_model(hub: DirectoryHub, model: Path) -> None:
    terms = ("LICENSE.txt", "LICENSE-CODE", "NOTICE", "Notice.md", "USE_POLICY.md", "license-2.0", "copying.pdf")
    for name in (*terms, "license.py", "licensed_text.txt", "notice.bin"):
        (model / name).touch()
    (model / "onnx").mkdir()
    (model / "onnx" / "LICENSE").touch()
    assert set(files_to_download(snapshot_of(hub), hub)) == {*terms, "config.json", SINGLE}
    for number in range(40):
        (model / f"NOTICE-{number}").touch()
    with pytest.raises(BrokenModel, match="47 files named as licences and notices; at most 32"):
        check_listing(snapshot_of(hub))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("pytorch_model.bin", "which can run code when loaded"),
        ("model.gguf", "which is not read"),
        ("a.txt", "no weights"),
    ],
)
def test_weights_in_another_form(hub: DirectoryHub, model: Path, name: str, says: str) -> None:
    (model / SINGLE).rename(model / name)
    with pytest.raises(UnsafeModel, match=rf"has (only {name}, )?{says}; weights must be safetensors"):
        check_listing(snapshot_of(hub))


def test_chat_templates_by_other_names(hub: DirectoryHub, model: Path, tmp_path: Path) -> None:
    folder = model / "additional_chat_templates"
    folder.mkdir()
    for name in ("tool_use.jinja", "rag.jinja", "notes.md", ".hidden.py"):
        (folder / name).touch()
    named = {f"{folder.name}/{name}" for name in ("tool_use.jinja", "rag.jinja")}
    assert set(files_to_download(snapshot_of(hub), hub)) == {*named, "config.json", SINGLE}
    assert {path.relative_to(model).as_posix() for path in side_files(model)} == {*named, "config.json"}
    assert used_files(model) == [model / "config.json"]
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    assert side_files(model) == [model / "config.json"]
    folder.unlink()
    folder.mkdir()
    for number in range(33):
        (folder / f"{number}.jinja").touch()
    with pytest.raises(BrokenModel, match="33 files in additional_chat_templates; at most 32"):
        check_listing(snapshot_of(hub))


def test_an_index_of_very_many_tensors(hub: DirectoryHub, model: Path) -> None:
    """Of a model with a hundred thousand tensors of experts: other JSON files may not be as large."""
    (model / SINGLE).rename(model / FIRST)
    weight_map = {f"model.layers.{number}.mlp.experts.up_proj.weight": FIRST for number in range(100_000)}
    (model / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert (model / INDEX).stat().st_size > 8 * 2**20
    check_listing(snapshot_of(hub))
    assert files_to_download(snapshot_of(hub), hub) == ("config.json", FIRST, INDEX)
    assert weight_files(model) == [model / FIRST]


def test_the_files_of_the_index(hub: DirectoryHub, model: Path) -> None:
    (model / SINGLE).rename(model / FIRST)
    (model / SECOND).touch()
    (model / "consolidated.safetensors").touch()
    (model / INDEX).write_text(json.dumps({"weight_map": {"a": FIRST, "b": SECOND}}))
    check_listing(snapshot_of(hub))
    assert files_to_download(snapshot_of(hub), hub) == ("config.json", FIRST, SECOND, INDEX)
    (model / SINGLE).touch()
    with pytest.raises(UnsafeModel, match="not clear which"):
        files_to_download(snapshot_of(hub), hub)


def test_a_file_that_may_not_be_read(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is for others than root, as whom tests may run."""
    monkeypatch.setattr("os.access", lambda path, mode: bool(Path(path).stat().st_mode & mode << 6))
    (model / "config.json").chmod(0)
    with pytest.raises(BrokenModel, match=r"config\.json cannot be read: Permission denied"):
        read_config(model)
    assert weight_files(model) == [model / SINGLE]
