"""Stored activations give the sums of a pass that stores nothing, to the bit, for every cut without another pass."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from replaceme_core.engine.activations.capture import Activations
from replaceme_core.engine.activations.cut_sums import CutStatistics
from replaceme_core.engine.activations.tensor_store import (
    DamagedStore,
    FileStore,
    MemoryStore,
    SpillingStore,
    TensorStore,
)
from replaceme_core.engine.model import block_runner as module
from replaceme_core.engine.model.block_runner import BlockRunner
from replaceme_core.engine.model.changes import Cut, FittedCut, windows
from replaceme_core.engine.model.lazy_model import load_lazily
from replaceme_core.engine.model.load import load_model
from replaceme_core.families.resolve import resolve
from tests.fixtures.models.activations import CUTS, make_activations
from tests.fixtures.models.tiny import BLOCKS, VARIANTS, WIDTH, Variant, save_tiny, tiny_model, token_ids

FIT, HELD_OUT = token_ids(6, 32, seed=1), token_ids(8, 32, seed=2)


def nothing(_: float) -> None:
    pass


def activations_of(streams: TensorStore | None, *, variant: Variant = VARIANTS[0], sink: bool = False) -> Activations:
    model = tiny_model(variant)
    if sink:
        with torch.no_grad():
            model.get_input_embeddings().weight[7] *= 4000
    return Activations(
        block_runner=BlockRunner(resolved=resolve(model)),
        fit=FIT,
        held_out=HELD_OUT,
        batch_size=4,
        advance=nothing,
        store=streams,
    )


def equal(one: CutStatistics, other: CutStatistics) -> bool:
    return all(
        torch.equal(mine.gram, theirs.gram)
        and torch.equal(mine.cross, theirs.cross)
        and (mine.error, mine.target, mine.tokens) == (theirs.error, theirs.target, theirs.tokens)
        for mine, theirs in ((one.fit, other.fit), (one.held_out, other.held_out))
    ) and (one.cut, one.sinks, one.angle) == (other.cut, other.sinks, other.angle)


@pytest.fixture(params=["memory", "files"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], TensorStore]:
    return MemoryStore if request.param == "memory" else lambda: FileStore(directory=tmp_path)


@torch.inference_mode()
@pytest.mark.parametrize("sink", [False, True])
def test_kept_streams_give_the_sums_of_a_pass_to_the_bit(make: Callable[[], TensorStore], sink: bool) -> None:
    kept = activations_of(make(), sink=sink)
    for length in (1, 2, 5):
        cuts = windows(BLOCKS, length)
        passed = activations_of(None, sink=sink)
        expected, found = passed.windows(cuts), kept.windows(cuts)
        assert all(equal(one, other) for one, other in zip(found, expected, strict=True))
        for block in (*(cut.anchor for cut in cuts), BLOCKS):
            for batch in kept.held_out_batches:
                assert torch.equal(kept.read_or_run(block, batch), passed.read_or_run(block, batch))
    if sink:
        assert max(one.sinks for one in found) > 0


@torch.inference_mode()
@pytest.mark.parametrize("name", ["llama", "falcon-7b", "gpt2", "granite"])
def test_each_block_runs_once_for_all_cuts(name: str) -> None:
    variant = next(one for one in VARIANTS if one.name == name)
    kept = activations_of(MemoryStore(), variant=variant)
    runs = [0] * BLOCKS
    for index, block in enumerate(kept.block_runner.blocks):
        block.register_forward_hook(lambda _m, _i, _o, index=index: runs.__setitem__(index, runs[index] + 1))
    for length in (1, 2, 4):
        kept.windows(windows(BLOCKS, length))
    kept.statistics(Cut(start=2, end=4))
    assert runs == [len(kept.batches)] * BLOCKS
    assert kept.dense_block_runs == sum(runs)


@torch.inference_mode()
def test_the_streams_are_those_of_the_model(make: Callable[[], TensorStore]) -> None:
    kept = activations_of(make())
    model = kept.block_runner.resolved.model
    for batch in (*kept.fit_batches, *kept.held_out_batches):
        hidden = model(input_ids=kept.tokens(batch), output_hidden_states=True).hidden_states
        for block in range(BLOCKS - 1):  # the last of `hidden_states` has been through the final norm
            torch.testing.assert_close(kept.before(block, batch), hidden[block])
            assert torch.equal(kept.after(block, batch), kept.before(block + 1, batch))
            attention = kept.after(block, batch) - kept.before(block, batch) - kept.write(block, batch)
            assert attention.shape == (len(kept.tokens(batch)), 32, WIDTH)
    assert torch.equal(torch.cat([kept.tokens(batch) for batch in kept.fit_batches]), FIT)
    assert torch.equal(torch.cat([kept.tokens(batch) for batch in kept.held_out_batches]), HELD_OUT)


@torch.inference_mode()
@pytest.mark.parametrize("first", [Cut(start=1, end=1), Cut(start=2, end=2)])
def test_a_cut_on_a_pruned_prefix(make: Callable[[], TensorStore], first: Cut) -> None:
    done = [FittedCut(cut=first, delta=torch.eye(WIDTH, dtype=torch.float64) * 0.2)]
    cut = Cut(start=4, end=5)
    expected = activations_of(None).statistics(cut, done=done)
    assert equal(activations_of(make()).statistics(cut, done=done), expected)


@torch.inference_mode()
def test_streams_are_stored_once_a_single_one_is_requested() -> None:
    kept = activations_of(None)
    kept.windows(windows(BLOCKS, 5))
    kept.before(3, 0)
    assert kept.store is not None
    before = kept.dense_block_runs
    kept.statistics(Cut(start=3, end=4))
    assert kept.dense_block_runs == before


def test_what_was_written_is_read(tmp_path: Path) -> None:
    streams = FileStore(directory=tmp_path)
    generator = torch.Generator().manual_seed(0)
    several = [
        torch.randn(3, 5, 7, generator=generator),
        torch.randn(2, 1, generator=generator).to(torch.bfloat16),
        torch.randn(700, 9, generator=generator).double().T,
    ]
    for values in several:
        streams.put("one", values)
    streams.put("two", several[0])
    for index, values in enumerate(several):
        found = streams.get("one", index)
        assert torch.equal(found, values)
        assert found.dtype == values.dtype
    assert (streams.count("one"), streams.count("two"), streams.count("three")) == (3, 1, 0)
    assert streams.nbytes == sum(path.stat().st_size for path in tmp_path.iterdir())


@pytest.mark.parametrize("harm", ["flip", "zero", "swap", "cut", "remove"])
def test_damage_is_found(tmp_path: Path, harm: str) -> None:
    streams = FileStore(directory=tmp_path)
    streams.put("one", torch.arange(1, 10_001, dtype=torch.float32))
    path = tmp_path / "one"
    data = bytearray(path.read_bytes())
    if harm == "flip":
        data[20_001] ^= 1
    elif harm == "zero":
        data[4096:8192] = bytes(4096)
    elif harm == "swap":
        data[4096:8192], data[8192:12288] = data[8192:12288], data[4096:8192]
    elif harm == "cut":
        del data[39_999:]
    path.write_bytes(data)
    if harm == "remove":
        path.unlink()
    with pytest.raises(DamagedStore, match="one"):
        streams.get("one", 0)


@torch.inference_mode()
def test_memory_is_released_after_each_block_and_cut_of_a_lazily_loaded_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = list[None]()
    monkeypatch.setattr(module, "release_memory", lambda: released.append(None))
    source, cuts = save_tiny(tmp_path / "model"), windows(BLOCKS, 2)
    for load, expected in ((load_model, 0), (load_lazily, BLOCKS + len(cuts))):
        activations = Activations(
            block_runner=BlockRunner(resolved=resolve(load(source, dtype=torch.float32, device="cpu"))),
            fit=FIT,
            held_out=HELD_OUT,
            batch_size=4,
            advance=nothing,
            always_store=True,
        )
        activations.windows(cuts)
        assert len(released) == expected


BLOCK = 4


@pytest.fixture
def windowed(tmp_path: Path) -> Iterator[Activations]:
    """After a pass over windows whose anchor blocks come before `BLOCK`; its held-out streams lie on disk."""
    with SpillingStore(beside=tmp_path / "out", limit=0) as streams, torch.inference_mode():
        activations = make_activations(make_held_out_store=lambda: streams)
        activations.windows([cut for cut in CUTS if cut.anchor < BLOCK])
        yield activations


@torch.inference_mode()
def test_the_stream_is_that_of_a_plain_pass_and_blocks_run_since_the_nearest_one(windowed: Activations) -> None:
    plain, kept = make_activations(), make_activations(store=MemoryStore())
    kept.capture()
    nearest = max(cut.anchor for cut in CUTS if cut.anchor < BLOCK)
    for batch, since in ((0, 0), (plain.held_out_batches[3], nearest)):
        expected = plain.block_runner.enter(plain.tokens(batch))
        for block in range(BLOCK):
            expected = plain.block_runner.run(block, expected)
        for activations, runs in ((plain, BLOCK), (windowed, BLOCK - since), (kept, 0)):
            before = activations.dense_block_runs
            assert torch.equal(activations.read_or_run(BLOCK, batch), expected)
            assert activations.dense_block_runs - before == runs


@torch.inference_mode()
def test_the_ends_of_a_cut_cost_the_blocks_since_its_anchor_on_held_out_tokens(windowed: Activations) -> None:
    kept = make_activations(store=MemoryStore())
    kept.capture()
    for activations, runs in ((windowed, 3), (kept, 0)):
        before = activations.dense_block_runs
        activations.at_cut(activations.held_out_batches[0], Cut(start=3, end=4), done=[])
        assert activations.dense_block_runs - before == runs
