"""Random headers and indexes, through admission and loading: only errors of ours."""

import json
import shutil
import struct
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from replaceme_core.engine.model.lazy_model import load_lazily
from replaceme_core.engine.model.load import load_model, stored_weights
from replaceme_core.errors import ReplaceMeError
from replaceme_core.hub.model_config import read_outline
from tests.fixtures.hostile.fuzzing import MEGABYTES, fuzzed, peak_megabytes
from tests.fixtures.hostile.mutation import VALUES, mutated
from tests.fixtures.hostile.watch import nothing_escapes
from tests.fixtures.models.tiny import save_tiny

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound model, whose sound weights are also in `sound`."""
    directory = save_tiny(tmp_path_factory.mktemp("fuzz") / "model")
    shutil.copyfile(directory / WEIGHTS, directory / "sound")
    load_model(directory, dtype=torch.float32, device="cpu")  # what the libraries need is in memory from here on
    return directory


def read(directory: Path) -> None:
    before = peak_megabytes()
    with nothing_escapes(directory), suppress(ReplaceMeError):
        read_outline(directory)
        stored_weights(directory)
        load_lazily(directory, dtype=torch.float32, device="cpu")
        load_model(directory, dtype=torch.float32, device="cpu")
    assert peak_megabytes() - before < MEGABYTES


ROWS = {
    "__metadata__": {"format": "pt"},
    "model.embed_tokens.weight": {"dtype": "F32", "shape": [260, 16], "data_offsets": [0, 16640]},
    "model.norm.weight": {"dtype": "F32", "shape": [16], "data_offsets": [16640, 16704]},
}
NUMBERS = st.sampled_from([0, 4, 16, 260, 16640, 16704, -4, 2**63, 1.0, True]) | VALUES


@fuzzed(0.25)
@given(rows=mutated(ROWS, NUMBERS))
def test_headers_that_were_changed(directory: Path, rows: object) -> None:
    text = json.dumps(rows).encode()
    (directory / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + bytes(16704))
    read(directory)


@fuzzed(0.05)
@given(data=st.data())
def test_rows_of_a_whole_model_that_were_changed(directory: Path, data: st.DataObject) -> None:
    raw = (directory / "sound").read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    text = json.dumps(data.draw(mutated(json.loads(raw[8 : 8 + length]), NUMBERS))).encode()
    (directory / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])
    read(directory)


@fuzzed(0.15)
@given(
    places=st.lists(st.tuples(st.integers(0, 9000), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4),
    cut=st.none() | st.integers(0, 120_000),
)
def test_bytes_that_were_changed(directory: Path, places: list[tuple[int, bytes]], cut: int | None) -> None:
    raw = bytearray((directory / "sound").read_bytes())
    for place, new in places:
        raw[place : place + len(new)] = new
    (directory / WEIGHTS).write_bytes(raw[:cut])
    read(directory)


NAMES = st.sampled_from([WEIGHTS, "sound", "../model/model.safetensors", "/etc/passwd", "a.safetensors", ".."])


@fuzzed(0.15)
@given(
    index=mutated({"metadata": {"total_size": 1}, "weight_map": {"a": WEIGHTS, "b": WEIGHTS}}, NAMES | VALUES)
    | st.dictionaries(st.text(max_size=8), NAMES | st.text(max_size=12), max_size=4).map(lambda m: {"weight_map": m})
)
def test_indexes(directory: Path, index: object) -> None:
    shutil.copyfile(directory / "sound", directory / WEIGHTS)
    (directory / INDEX).write_text(json.dumps(index))
    try:
        read(directory)
    finally:
        (directory / INDEX).unlink()
