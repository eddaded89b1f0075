"""Bad input and full disks are errors before any work, and a run that failed leaves nothing behind."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from replaceme_core.engine.pipeline import compress
from replaceme_core.errors import (
    BrokenModel,
    CalibrationTooSmall,
    InvalidInput,
    OutOfSpace,
    ReplaceMeError,
)
from tests.fixtures.models.pipeline import request, run
from tests.fixtures.models.recorder import Recorder
from tests.fixtures.models.tiny import BLOCKS, BY_NAME, save_tiny


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "source", dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"drop": [3, 6]}, InvalidInput, "blocks 0 to 5; there is no block 6"),
        (
            {"calibration": {"dataset": "file:text.txt", "samples": 2000, "max_length": 32}},
            CalibrationTooSmall,
            "tokens",
        ),
        ({"calibration": {"dataset": "file:text.txt", "samples": 2, "max_length": 8}}, CalibrationTooSmall, "width 16"),
        ({"compute": {"device": "cuda:7"}}, InvalidInput, "'cuda:7' is not on this machine"),
    ],
)
def test_bad_input_leaves_nothing(
    source: Path, fields: dict[str, object], error: type[ReplaceMeError], message: str
) -> None:
    with pytest.raises(error, match=message):
        run(request(source, **fields))
    assert sorted(path.name for path in source.parent.iterdir()) == ["source", "text.txt"]


def changed(source: Path, **values: object) -> None:
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, **values}))


def test_a_text_or_a_config_that_the_model_cannot_take(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "gpt2", variant=BY_NAME["gpt2"])
    long = request(source, calibration={"dataset": "file:text.txt", "samples": 4, "max_length": 257})
    with pytest.raises(InvalidInput, match="has 256 positions, and sequences of 257 tokens are asked for") as caught:
        run(long)
    assert caught.value.field == "calibration.max_length"
    source = save_tiny(tmp_path / "mistral", variant=BY_NAME["mistral-sliding"])
    changed(source, sliding_window=0)
    with pytest.raises(BrokenModel, match="sliding_window as 0; it must be a positive number"):
        run(request(source))


@pytest.mark.parametrize("own", [0.0, 0.5])
def test_a_model_that_does_not_run_is_broken(own: float, tmp_path: Path) -> None:
    """Its weights are those of its config, and its router asks for more experts than there are."""
    source = save_tiny(tmp_path / "source", variant=BY_NAME["mixtral"])
    changed(source, num_experts_per_tok=9)
    calibration = {"dataset": "file:text.txt", "samples": 16, "max_length": 32, "self_generated": own}
    with pytest.raises(BrokenModel, match=r"does not run on what calibrates it \(.*out of range\); use the files"):
        run(request(source, calibration=calibration))


def test_a_target_that_exists_is_refused_before_any_work(source: Path) -> None:
    one = request(source)
    Path(one.output_directory).mkdir()
    recorder = Recorder()
    with pytest.raises(InvalidInput, match="exists already"):
        compress(one, recorder)
    assert recorder.stages == []


def test_not_enough_disk_space_for_the_result_is_an_error_before_any_work(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = request(source)
    _, _, out = run(one)
    size = (out / "model.safetensors").stat().st_size
    shutil.rmtree(out)
    whole = (source / "model.safetensors").stat().st_size
    free = whole * (BLOCKS - 2) // (2 * BLOCKS)  # too little even if all weights were in the blocks

    def disk(_: object) -> shutil._ntuple_diskusage:
        return shutil._ntuple_diskusage(total=2 * whole, used=2 * whole - free, free=free)

    monkeypatch.setattr("shutil.disk_usage", disk)
    recorder = Recorder()
    with pytest.raises(OutOfSpace, match=f"{free:,} are free"):
        compress(one, recorder)
    assert recorder.stages == []
    assert sorted(path.name for path in source.parent.iterdir()) == ["source", "text.txt"]
    free = size  # just enough: what is asked for is never more than it takes
    run(one)
