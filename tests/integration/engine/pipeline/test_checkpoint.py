"""What a method decided outlives the process that decided it, and gives the same weights."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from replaceme_core.engine.activations.verified_file import PARTIAL
from replaceme_core.engine.methods.task import Candidate, Pruning
from replaceme_core.engine.model.changes import Cut, FittedCut, ReadingChange, WeightChange
from replaceme_core.engine.pipeline import compress
from replaceme_core.engine.results import checkpoint
from replaceme_core.families.layout import Weight
from replaceme_core.request.method import Method
from replaceme_core.runner.messages import RunnerRequest, Stage
from tests.fixtures.models.images import image_request, make_images, saved_tower
from tests.fixtures.models.pipeline import request
from tests.fixtures.models.recorder import Recorder
from tests.fixtures.models.tiny import save_tiny


class Killed(BaseException):
    """In place of kill -9."""


class Watcher(Recorder):
    """Remembers what was taken over, and may die at the beginning of a stage."""

    def __init__(self, *, dies_at: Stage | None = None) -> None:
        super().__init__()
        self.dies_at = dies_at
        self.resumed: list[tuple[Stage, Stage]] = []

    def stage(self, stage: Stage, *, resumed_from: Stage | None = None) -> None:
        super().stage(stage)
        if resumed_from is not None:
            self.resumed.append((stage, resumed_from))
        if stage is self.dies_at:
            raise Killed


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "source", dtype=torch.float32)


def asked(source: Path, *, method: str = "least_squares", **fields: object) -> RunnerRequest:
    return request(source, method={"name": method}, evaluation={"enabled": False}, **fields).model_copy(
        update={"checkpoint_directory": str(source.parent / "checkpoints" / "job")}
    )


def run(one: RunnerRequest, name: str, *, dies_at: Stage | None = None) -> tuple[Watcher, Path]:
    watcher = Watcher(dies_at=dies_at)
    out = Path(one.output_directory).with_name(name)
    one = one.model_copy(update={"output_directory": str(out)})
    if dies_at is None:
        compress(one, watcher)
    else:
        with pytest.raises(Killed):
            compress(one, watcher)
    return watcher, out


def kept(one: RunnerRequest) -> list[Path]:
    assert one.checkpoint_directory is not None
    return sorted(Path(one.checkpoint_directory).iterdir())


def weights(out: Path) -> bytes:
    return (out / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("method", "which"),
    [
        (Method.AUTO, {}),
        (Method.MERGE, {}),
        (Method.LEAST_SQUARES, {"drop": (1, 2, 4)}),
    ],
)
def test_a_job_that_goes_on_gives_the_same_bits(source: Path, method: Method, which: dict[str, object]) -> None:
    one = asked(source, method=method.value, **which)
    _, plain = run(one.model_copy(update={"checkpoint_directory": None}), "plain")
    first, _ = run(one, "killed", dies_at=Stage.FOLD)
    assert first.resumed == []
    again, resumed = run(one, "resumed")
    assert again.resumed == [(Stage.SOLVE, Stage.SOLVE)]
    assert again.stages == [Stage.CALIBRATE, Stage.SOLVE, Stage.FOLD, Stage.SAVE]
    assert weights(resumed) == weights(plain)
    reports = [json.loads((out / "replaceme.json").read_text()) for out in (plain, resumed)]
    for name in ("removed_blocks", "kept_blocks", "candidates", "spec"):
        assert reports[0][name] == reports[1][name]


@pytest.mark.parametrize(
    ("change", "resumed"),
    [
        ({"ratio": 0.17}, False),
        ({"model": {"repo_id": "org/tiny", "revision": "b" * 40}}, False),
        ({"method": {"name": "least_squares", "ridge": 0.5}}, False),
        ({"compute": {"threads": 1, "batch_size": 3}}, False),
        ({"labels": {"a": "b"}, "output": {"repo_id": "org/elsewhere"}, "priority": 9}, True),
    ],
    ids=str,
)
def test_what_decides_the_weights_is_in_the_key(source: Path, change: dict[str, object], resumed: bool) -> None:
    one = asked(source)
    run(one, "killed", dies_at=Stage.FOLD)
    other = request(source, **{"evaluation": {"enabled": False}, **change}).model_copy(
        update={"checkpoint_directory": one.checkpoint_directory}
    )
    assert bool(run(other, "other")[0].resumed) is resumed


def test_another_text_or_another_code_is_another_key(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = asked(source)
    run(one, "killed", dies_at=Stage.FOLD)
    text = source.parent / "text.txt"
    before = text.read_text()
    text.write_text(before[::-1])
    assert run(one, "other-text")[0].resumed == []
    text.write_text(before)
    monkeypatch.setattr(checkpoint, "code_digest", lambda: "a later release")
    assert run(one, "other-code")[0].resumed == []


def test_other_images_of_the_same_name_are_another_key(tmp_path: Path) -> None:
    source, images = saved_tower(tmp_path / "source", "vit"), make_images(tmp_path / "images", 40)
    one = image_request(source, images).model_copy(update={"checkpoint_directory": str(tmp_path / "checkpoints")})
    run(one, "killed", dies_at=Stage.FOLD)
    assert run(one, "same-images")[0].resumed != []
    shutil.rmtree(images)
    make_images(images, 40, seed=1)
    assert run(one, "other-images")[0].resumed == []


def test_a_damaged_one_is_not_used(source: Path) -> None:
    one = asked(source)
    run(one, "killed", dies_at=Stage.FOLD)
    (path,) = kept(one)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    assert run(one, "again")[0].resumed == []
    assert run(one, "third")[0].resumed, "it was made anew"


def test_what_a_killed_writer_leaves_is_removed_by_the_next(source: Path) -> None:
    one = asked(source)
    assert one.checkpoint_directory is not None
    Path(one.checkpoint_directory).mkdir(parents=True)
    (Path(one.checkpoint_directory) / f"some-key{PARTIAL}").write_bytes(b"half of it")
    run(one, "out")
    (path,) = kept(one)
    assert path.suffix == ".safetensors"


def test_a_directory_that_cannot_be_written_does_not_fail_the_job(source: Path) -> None:
    one = asked(source)
    (source.parent / "checkpoints").write_text("a file in the way")
    watcher, out = run(one, "out")
    assert watcher.resumed == []
    assert weights(out)


def test_every_kind_of_value_comes_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    square = torch.randn(4, 4, dtype=torch.float64)
    pruning = Pruning(
        removed=[2, 3],
        folds=[FittedCut(cut=Cut(start=2, end=3), delta=square.T), FittedCut(cut=Cut(start=2, end=3), delta=square)],
        changes=[
            WeightChange(block=1, parameter="mlp.down_proj.weight", change=square[:, 1].to(torch.bfloat16)),
            ReadingChange(block=4, weights=(Weight("mlp.up_proj.weight", 1),), change=square),
        ],
        candidates=[Candidate(cut=Cut(start=2, end=3), distance=0.25, residual=float("nan"), chosen=True)],
    )
    path = tmp_path / "key.safetensors"
    back = checkpoint._keep(pruning, path)
    assert back is not pruning
    assert (back.removed, back.folds[0].cut) == ([2, 3], Cut(start=2, end=3))
    for before, after in zip(
        [*(one.delta for one in pruning.folds), *(one.change for one in pruning.changes)],
        [*(one.delta for one in back.folds), *(one.change for one in back.changes)],
        strict=True,
    ):
        assert torch.equal(before, after)
        assert before.dtype == after.dtype
    assert back.folds[0].delta.stride() == square.T.stride(), "the layout decides the rounding"
    assert [one.parameters for one in back.changes] == [("mlp.down_proj.weight",), ("mlp.up_proj.weight",)]
    assert isinstance(back.changes[1], ReadingChange)
    assert back.changes[1].weights == (Weight("mlp.up_proj.weight", 1),)
    assert repr(back.candidates) == repr(list(pruning.candidates))
    with safe_open(path, framework="pt") as file:
        assert set(file.metadata()) == {"record", "digest"}
