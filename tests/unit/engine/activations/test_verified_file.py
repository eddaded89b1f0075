"""A file is what was written, or it is not used; files of earlier releases are read."""

import hashlib
import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from replaceme_core.engine.activations.verified_file import (
    PARTIAL,
    delete_partial_files,
    read_contents,
    write_verified,
)

TENSORS = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.arange(8.0, dtype=torch.float64).reshape(2, 4).T}
RECORD: dict[str, object] = {"name": "one", "values": [1, None, 0.5]}


def test_record_and_tensors_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "key.safetensors"
    contents = write_verified(path, TENSORS, RECORD, read=read_contents)
    assert contents is not None
    assert contents.record == RECORD
    assert set(contents.tensors) == set(TENSORS)
    assert all(torch.equal(contents.tensors[name], values) for name, values in TENSORS.items())
    assert [file.name for file in tmp_path.iterdir()] == ["key.safetensors"]


def test_the_format_is_a_record_and_a_digest_in_the_header(tmp_path: Path) -> None:
    """Written here without the module, as earlier releases did."""
    digest = hashlib.sha256(json.dumps(RECORD, sort_keys=True).encode())
    for name in sorted(TENSORS):
        values = TENSORS[name].contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode() + values.numpy().tobytes())
    held = {name: values.contiguous() for name, values in TENSORS.items()}
    save_file(held, tmp_path / "old.safetensors", metadata={"record": json.dumps(RECORD), "digest": digest.hexdigest()})
    contents = read_contents(tmp_path / "old.safetensors")
    assert contents is not None
    assert contents.record == RECORD


@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "header"])
def test_a_damaged_file_is_not_used_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture, harm: str) -> None:
    path = tmp_path / "key.safetensors"
    write_verified(path, TENSORS, RECORD, read=read_contents)
    content = bytearray(path.read_bytes())
    if harm == "flip":
        content[-5] ^= 1
    path.write_bytes({"cut": content[:-8], "empty": b""}.get(harm, content))
    if harm == "header":
        save_file(TENSORS | {"a": torch.zeros(1)}, path)
    with caplog.at_level(logging.WARNING):
        assert read_contents(path) is None
    assert len(caplog.records) == 1
    assert "key.safetensors is not used" in caplog.text


def test_a_missing_file_is_not_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read_contents(tmp_path / "key.safetensors") is None
    assert not caplog.records


def test_what_cannot_be_read_back_takes_no_name(tmp_path: Path) -> None:
    assert write_verified(tmp_path / "key.safetensors", TENSORS, RECORD, read=lambda _: None) is None
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError, match="No such file"):
        write_verified(tmp_path / "missing" / "key.safetensors", TENSORS, RECORD, read=read_contents)


def test_partial_files_are_deleted(tmp_path: Path) -> None:
    for name in ("one.1", "other.1"):
        (tmp_path / f"{name}{PARTIAL}").write_text("half")
    (tmp_path / "one").write_text("whole")
    delete_partial_files(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["one"]
