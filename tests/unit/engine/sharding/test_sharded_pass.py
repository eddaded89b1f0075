"""Sums in shards: those of one pass up to the order of additions, whichever worker computes or loses a shard."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from benchmarks.harness.specs import a_spec
from replaceme_core.engine.activations.batches import Batch
from replaceme_core.engine.activations.cut_sums import CutStatistics
from replaceme_core.engine.activations.window_sums import WindowSums, capture_windows
from replaceme_core.engine.model.block_runner import BlockRunner
from replaceme_core.engine.model.cut import Cut, windows
from replaceme_core.engine.model.device import resolve_spec
from replaceme_core.engine.numerics.moments import Moments
from replaceme_core.engine.sharding.shard_files import include_sums, read_plan, read_tokens, write_plan
from replaceme_core.engine.sharding.sharded_pass import (
    ShardedPass,
    capture_shard,
    resolve_shards,
    split_into_shards,
    write_shard,
)
from replaceme_core.families.resolve import resolve
from replaceme_core.request.spec import CompressionSpec
from replaceme_core.runner.messages import ShardAnswer
from replaceme_core.runner.requests import RunnerRequest
from tests.fixtures.models.tiny import BLOCKS, VARIANTS, tiny_model, token_ids

FIT, HELD_OUT = token_ids(23, 32, seed=1), token_ids(4, 32, seed=2)
CUTS = windows(BLOCKS, 2)
BATCH = 2
UNIT_ROUNDOFF = 2.0**-53


@pytest.fixture(params=[False, True], ids=["ordinary", "sinks"])
def block_runner(request: pytest.FixtureRequest) -> BlockRunner:
    model = tiny_model(VARIANTS[0])
    if request.param:
        with torch.no_grad():
            model.get_input_embeddings().weight[7] *= 4000
    return BlockRunner(resolved=resolve(model))


def spec_of(shards: int | None) -> CompressionSpec:
    compute = {"shards": shards, "batch_size": BATCH, "device": "cpu", "threads": 1, "dtype": "float32"}
    return a_spec(compute=compute)


def nothing(_: float) -> None:
    pass


def no_progress(_: int) -> None:
    pass


@torch.inference_mode()
def run(block_runner: BlockRunner, shards: int, **fields: object) -> list[CutStatistics]:
    one = ShardedPass(spec=spec_of(shards), **fields)  # type: ignore[arg-type]
    statistics, _ = one(block_runner, CUTS, fit=FIT, held_out=HELD_OUT, batch_size=BATCH, advance=nothing)
    return statistics


@torch.inference_mode()
def whole(block_runner: BlockRunner) -> list[CutStatistics]:
    statistics, _ = capture_windows(block_runner, CUTS, fit=FIT, held_out=HELD_OUT, batch_size=BATCH, advance=nothing)
    return statistics


def moments_of(sums: WindowSums) -> list[Moments]:
    """Over the fit tokens."""
    return [each.fit.moments(sums.anchors[cut.anchor].fit) for cut, each in sums.cuts.items()]


def equal(one: Sequence[CutStatistics], other: Sequence[CutStatistics]) -> bool:
    return all(
        torch.equal(mine.fit.gram, theirs.fit.gram)
        and torch.equal(mine.fit.cross, theirs.fit.cross)
        and (mine.fit.error, mine.fit.target, mine.fit.tokens)
        == (theirs.fit.error, theirs.fit.target, theirs.fit.tokens)
        and torch.equal(mine.held_out.gram, theirs.held_out.gram)
        and (mine.cut, mine.sinks, mine.angle) == (theirs.cut, theirs.sinks, theirs.angle)
        for mine, theirs in zip(one, other, strict=True)
    )


@dataclass
class FakeSupervisor:
    """Assigns each shard that is not done to the worker that asks; `others` says which are done by other workers."""

    others: Callable[[int], bool] = lambda number: False
    planned: list[tuple[str, int, list[int]]] = field(default_factory=list)
    given: list[int] = field(default_factory=list)
    done: set[int] = field(default_factory=set)
    count: int = 0

    def plan(self, plan: str, *, count: int, done: list[int]) -> None:
        self.planned.append((plan, count, done))
        self.count, self.done = count, set(done)

    def next(self, finished: int | None) -> ShardAnswer:
        self.done |= {number for number in range(self.count) if number not in self.given and self.others(number)}
        if finished is not None:
            self.done.add(finished)
        free = sorted(set(range(self.count)) - self.done)
        number = free[0] if free else None
        self.given += [] if number is None else [number]
        return ShardAnswer(number=number, done=len(self.done), count=self.count)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 12])
def test_shards_are_whole_batches_and_all_of_them(count: int) -> None:
    shards = split_into_shards(FIT, batch_size=BATCH, count=count)
    assert len(shards) == count
    assert torch.equal(torch.cat([batch.tokens for shard in shards for batch in shard]), FIT)
    assert all(len(batch.tokens) == BATCH for shard in shards for batch in shard[:-1])
    sizes = [len(shard) for shard in shards]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("shards", [2, 5, 12])
def test_the_sums_are_those_of_one_pass_within_the_bound(block_runner: BlockRunner, shards: int) -> None:
    """2 (b - 1) u times the sum of the absolute values of what each of b batches adds."""
    expected, found = whole(block_runner), run(block_runner, shards)
    (batches,) = split_into_shards(FIT, batch_size=BATCH, count=1)
    with torch.inference_mode():
        each = [moments_of(capture_shard(block_runner, CUTS, [batch], step=no_progress)) for batch in batches]
    factor = 2 * len(batches) * UNIT_ROUNDOFF  # one more addition where a sink corrects M'M
    for index, (one, other) in enumerate(zip(expected, found, strict=True)):
        added: list[Moments] = [statistics[index] for statistics in each]
        for name in ("gram", "cross"):
            bound = factor * sum(getattr(moments, name).abs() for moments in added)
            assert bool(((getattr(one.fit, name) - getattr(other.fit, name)).abs() <= bound).all())
        assert abs(one.fit.error - other.fit.error) <= factor * one.fit.error
        assert abs(one.fit.target - other.fit.target) <= factor * one.fit.target
        assert abs(one.angle.total - other.angle.total) <= factor * one.angle.total
        assert (one.fit.tokens, one.sinks, one.angle.tokens) == (other.fit.tokens, other.sinks, other.angle.tokens)
        assert torch.equal(one.held_out.gram, other.held_out.gram)
        assert torch.equal(one.held_out.cross, other.held_out.cross)


def test_one_shard_is_one_pass_to_the_bit(block_runner: BlockRunner) -> None:
    found, expected = run(block_runner, 1), whole(block_runner)
    for one, other in zip(found, expected, strict=True):
        other.angle = one.angle  # its held-out part is added as a separate sum
    assert equal(found, expected)


def test_the_worker_of_a_shard_makes_no_difference(block_runner: BlockRunner, tmp_path: Path) -> None:
    alone = run(block_runner, 5)
    own = FakeSupervisor()
    assert equal(run(block_runner, 5, directory=tmp_path / "own", exchange=own), alone)
    assert own.given == [0, 1, 2, 3, 4]

    def other(number: int) -> bool:
        plan = read_plan(tmp_path / "shared")
        assert plan is not None
        if number in (1, 4) and not plan.shard(tmp_path / "shared", number).exists():
            tokens = read_tokens(tmp_path / "shared", plan)
            assert tokens is not None
            shard = split_into_shards(tokens, batch_size=BATCH, count=plan.count)[number]
            write_shard(
                tmp_path / "shared", plan, number, capture_shard(block_runner, plan.cuts, shard, step=no_progress)
            )
        return number in (1, 4)

    shared = FakeSupervisor(others=other)
    assert equal(run(block_runner, 5, directory=tmp_path / "shared", exchange=shared), alone)
    assert shared.given == [0, 2, 3]


def test_another_attempt_computes_only_missing_shards(block_runner: BlockRunner, tmp_path: Path) -> None:
    first, again = FakeSupervisor(), FakeSupervisor()
    expected = run(block_runner, 4, directory=tmp_path, exchange=first)
    plan = read_plan(tmp_path)
    assert plan is not None
    plan.shard(tmp_path, 2).unlink()
    assert equal(run(block_runner, 4, directory=tmp_path, exchange=again), expected)
    assert again.planned == [(first.planned[0][0], 4, [0, 1, 3])]
    assert again.given == [2]
    assert sorted(path.name for path in tmp_path.iterdir() if "partial" in path.name) == []


@pytest.mark.parametrize("damage", ["missing", "cut off", "one bit"])
def test_a_damaged_shard_is_computed_again(block_runner: BlockRunner, tmp_path: Path, damage: str) -> None:
    expected = run(block_runner, 4)

    def spoilt(number: int) -> bool:
        """Another worker reports it as done."""
        plan = read_plan(tmp_path)
        assert plan is not None
        path = plan.shard(tmp_path, number)
        if number == 1 and damage != "missing":
            shard = split_into_shards(FIT, batch_size=BATCH, count=4)[number]
            write_shard(tmp_path, plan, number, capture_shard(block_runner, CUTS, shard, step=no_progress))
            content = bytearray(path.read_bytes())
            content[-9] ^= 1
            path.write_bytes(content[:-100] if damage == "cut off" else content)
        return number == 1

    supervisor = FakeSupervisor(others=spoilt)
    assert equal(run(block_runner, 4, directory=tmp_path, exchange=supervisor), expected)
    assert 1 not in supervisor.given


def test_without_writable_files_everything_is_computed_here(block_runner: BlockRunner, tmp_path: Path) -> None:
    (tmp_path / "in-the-way").write_text("")
    supervisor = FakeSupervisor()
    found = run(block_runner, 4, directory=tmp_path / "in-the-way" / "shards", exchange=supervisor)
    assert equal(found, run(block_runner, 4))
    assert supervisor.planned == []


@pytest.mark.parametrize("missing_bytes", [0, 1])
def test_a_disk_without_space_for_all_shards_gets_none(
    block_runner: BlockRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing_bytes: int
) -> None:
    width = block_runner.resolved.model.config.hidden_size
    wanted = 4 * (len(CUTS) + len({cut.anchor for cut in CUTS})) * width**2 * 8
    usage = shutil.disk_usage(tmp_path)._replace(free=wanted - missing_bytes)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    supervisor = FakeSupervisor()
    found = run(block_runner, 4, directory=tmp_path, exchange=supervisor)
    assert equal(found, run(block_runner, 4))
    assert len(supervisor.planned) == 1 - missing_bytes


@torch.inference_mode()
def test_a_file_grows_with_the_sums_and_not_with_the_tokens(block_runner: BlockRunner, tmp_path: Path) -> None:
    plan = write_plan(tmp_path, key="0" * 64, count=2, cuts=CUTS, fit=FIT)
    for number, batches in enumerate(([FIT[:1]], FIT.split(8))):
        write_shard(
            tmp_path,
            plan,
            number,
            capture_shard(block_runner, CUTS, [Batch(tokens=one) for one in batches], step=no_progress),
        )
    sizes = [plan.shard(tmp_path, number).stat().st_size for number in range(2)]
    total = WindowSums.empty(CUTS, resolved=block_runner.resolved, held_out=False)
    assert include_sums(plan.shard(tmp_path, 1), total, resolved=block_runner.resolved)
    corrections = sum(len(sums.fit.corrections) for sums in total.cuts.values())
    width = block_runner.resolved.model.config.hidden_size
    matrices = len(total.anchors) + len(total.cuts)
    assert matrices * width**2 * 8 <= sizes[0] <= sizes[1] + 64
    assert sizes[1] <= (matrices + corrections) * width**2 * 8 + 16_384


def request(spec: CompressionSpec, **fields: object) -> RunnerRequest:
    return RunnerRequest(spec=spec, model_directory="m", calibration_paths=(None,), output_directory="o", **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "threshold", "shards"),
    [
        ({"method": "least_squares"}, None, 1),
        ({"method": "least_squares"}, 64 * 512 + 1, 1),
        ({"method": "least_squares"}, 64 * 512, 4),
        ({"method": "drop"}, 1, 1),
        ({}, 1, 1),  # `auto`
        ({"method": "cosine"}, 1, 1),
        ({"method": {"groups": 2}}, 1, 1),
        ({"method": {"as_published": True}}, 1, 1),
        ({"drop": [2]}, 1, 1),
        ({"shards": 3}, None, 3),
        ({"shards": 1}, 1, 1),
        ({"shards": 100}, None, 7),  # 56 sequences in batches of 8
        ({"loading": "blockwise"}, 1, 1),
    ],
)
def test_how_many_shards(fields: dict[str, object], threshold: int | None, shards: int) -> None:
    compute = {name: fields.pop(name) for name in ("shards", "loading") if name in fields}
    calibration = {"dataset": "builtin:pydoc-topics", "samples": 64, "max_length": 512}
    spec = a_spec(calibration=calibration, compute={"batch_size": 8, "loading": "whole", **compute}, **fields)
    asked = request(spec, shard_tokens=threshold, shard_count=4)
    resolved = resolve_shards(resolve_spec(spec, weights=1000), asked)
    assert resolved.compute.shards == shards
    again = resolve_shards(resolved, request(resolved, shard_tokens=1, shard_count=9))
    assert again == resolved, "once resolved it stays"


def test_a_cut_is_read_back_as_it_was(tmp_path: Path) -> None:
    plan = write_plan(tmp_path, key="1" * 64, count=3, cuts=[Cut(start=3, end=4), Cut(start=1, end=1)], fit=FIT)
    assert read_plan(tmp_path) == plan
    tokens = read_tokens(tmp_path, plan)
    assert tokens is not None
    assert torch.equal(tokens, FIT)
    again = {"count": 3, "cuts": plan.cuts, "fit": FIT}
    assert write_plan(tmp_path, key="1" * 64, **again) == plan  # type: ignore[arg-type]
    plan.tokens(tmp_path).unlink()
    repaired = write_plan(tmp_path, key="1" * 64, **again)  # type: ignore[arg-type]
    assert repaired.plan != plan.plan
    assert read_tokens(tmp_path, repaired) is not None
    assert write_plan(tmp_path, key="2" * 64, **again).plan != repaired.plan  # type: ignore[arg-type]
