"""One pass gives what many would, stored or not: streams, sums of every cut, replays and angles, to the bit."""

from pathlib import Path

import pytest
import torch

from replaceme_core.engine.activations.capture import Activations, CutStatistics
from replaceme_core.engine.activations.tensor_store import DamagedStore, FileStore, activation_bytes
from replaceme_core.engine.methods.least_squares import fit_cut
from replaceme_core.engine.methods.panel import variant_losses
from replaceme_core.engine.methods.task import Pruning
from replaceme_core.engine.model.changes import Cut, FittedCut, Variant, run_pruned, windows
from replaceme_core.engine.model.lazy_model import load_lazily
from replaceme_core.engine.model.load import load_model
from replaceme_core.engine.numerics.stream import MeanAngle, Stream, mean_angles
from replaceme_core.engine.results.layer_angles import layer_angles
from tests.fixtures.models.activations import MemoryStore, activations_of, count_runs, dense_pass
from tests.fixtures.models.tasks import mean_loss, operate
from tests.fixtures.models.tiny import BLOCKS, BY_NAME, WIDTH, save_tiny, tiny_model, token_ids

FIT, HELD_OUT = token_ids(6, 32, seed=1), token_ids(8, 32, seed=2)
DONE = [FittedCut(cut=Cut(start=1, end=1), delta=torch.eye(WIDTH, dtype=torch.float64) * 0.2)]


def pass_of(
    streams: FileStore | None = None, *, name: str = "llama", sink: bool = False, **fields: object
) -> Activations:
    model = tiny_model(BY_NAME[name])
    if sink:
        with torch.no_grad():
            model.get_input_embeddings().weight[7] *= 4000
    if streams is not None:
        fields |= {"always_store": True, "make_store": lambda: streams}
    return activations_of(model, FIT, HELD_OUT, **fields)


def equal(one: CutStatistics, other: CutStatistics) -> bool:
    return all(
        torch.equal(mine.gram, theirs.gram)
        and torch.equal(mine.cross, theirs.cross)
        and (mine.error, mine.target, mine.tokens) == (theirs.error, theirs.target, theirs.tokens)
        for mine, theirs in ((one.fit, other.fit), (one.held_out, other.held_out))
    ) and (one.cut, one.sinks, one.angle) == (other.cut, other.sinks, other.angle)


@torch.inference_mode()
@pytest.mark.parametrize("sink", [False, True])
def test_what_is_stored_is_what_is_run_to_the_bit(tmp_path: Path, sink: bool) -> None:
    kept, run = pass_of(FileStore(directory=tmp_path), sink=sink), pass_of(sink=sink)
    for cut in (Cut(start=1, end=1), Cut(start=2, end=4), Cut(start=1, end=5)):
        assert equal(kept.statistics(cut), run.statistics(cut))
        assert equal(kept.statistics(cut, done=DONE), run.statistics(cut, done=DONE)) or cut.start == 1
    for batch in (0, kept.held_out_batches[3]):
        for block in (0, 3, BLOCKS):
            before = run.dense_block_runs
            assert torch.equal(kept.before(block, batch), run.before(block, batch))
            assert run.dense_block_runs == before + block
    if sink:
        assert kept.statistics(Cut(start=2, end=2)).sinks > 0


@torch.inference_mode()
@pytest.mark.parametrize("name", ["llama", "falcon-7b"])
def test_each_block_runs_once_for_all_cuts(name: str) -> None:
    kept = pass_of(MemoryStore(), name=name)
    runs = count_runs(kept.block_runner.blocks)
    for cut in (*windows(BLOCKS, 1), *windows(BLOCKS, 4)):
        kept.statistics(cut)
    assert runs == [len(kept.batches)] * BLOCKS
    assert kept.dense_block_runs == sum(runs)


@torch.inference_mode()
def test_an_even_share_is_stored_where_there_is_no_room_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest is run again when it is read; streams for later jobs are complete."""
    activations = pass_of(batch_size=1)
    size = activation_bytes(activations.block_runner, tokens=FIT.numel() + HELD_OUT.numel())
    monkeypatch.setattr("replaceme_core.engine.activations.capture.CHOICE_STREAM_BYTES", size // 2)
    activations.capture()
    assert list(activations.stored) == [0, 1, 2, 6, 7, 8, 9]
    assert not activations.complete
    cut = Cut(start=2, end=4)
    assert equal(activations.statistics(cut), pass_of(batch_size=1).statistics(cut))
    assert pass_of(MemoryStore(), batch_size=1).statistics(cut).tokens == FIT.numel() + HELD_OUT.numel()
    monkeypatch.setattr("replaceme_core.engine.activations.capture.CHOICE_STREAM_BYTES", 0)
    activations = pass_of(batch_size=1)
    activations.capture()
    assert list(activations.stored) == [0, 6], "one of each at least"


@torch.inference_mode()
def test_the_streams_are_those_of_the_model(tmp_path: Path) -> None:
    kept = pass_of(FileStore(directory=tmp_path))
    model = kept.block_runner.resolved.model
    for batch in (*kept.fit_batches, *kept.held_out_batches):
        hidden = model(input_ids=kept.tokens(batch), output_hidden_states=True).hidden_states
        for block in range(BLOCKS - 1):  # the last of `hidden_states` has been through the final norm
            torch.testing.assert_close(kept.before(block, batch), hidden[block])
            assert torch.equal(kept.after(block, batch)[0], kept.before(block + 1, batch))
    assert torch.equal(torch.cat([kept.tokens(batch) for batch in kept.fit_batches]), FIT)
    assert torch.equal(torch.cat([kept.tokens(batch) for batch in kept.held_out_batches]), HELD_OUT)


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
    monkeypatch.setattr("replaceme_core.engine.model.block_runner.release_memory", lambda: released.append(None))
    source, cuts = save_tiny(tmp_path / "model"), windows(BLOCKS, 2)
    for load, expected in ((load_model, 0), (load_lazily, BLOCKS + len(cuts))):
        activations = activations_of(load(source, dtype=torch.float32, device="cpu"), FIT, HELD_OUT, always_store=True)
        for cut in cuts:
            activations.statistics(cut)
        assert len(released) == expected


@torch.inference_mode()
@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("done", [[], DONE], ids=["dense prefix", "pruned prefix"])
def test_statistics_are_those_of_every_token_on_the_prefix_toward_the_dense_stream(
    done: list[FittedCut], stored: bool
) -> None:
    fractions: list[float] = []
    activations = pass_of(MemoryStore() if stored else None, advance=fractions.append)
    one = activations.statistics(Cut(start=4, end=5), done=done)
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    block_runner, end = activations.block_runner, dense_pass(tiny_model(), FIT)[0][one.cut.end + 1].flatten(0, 1)
    pruned = run_pruned(block_runner, block_runner.enter(FIT), done=done, until=one.cut.anchor)
    kept, write = (values.flatten(0, 1) for values in pruned)
    torch.testing.assert_close(one.fit.gram, (write.T @ write).double(), rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(one.fit.cross, (write.T @ (end - kept)).double(), rtol=1e-4, atol=1e-2)
    assert one.fit.error == pytest.approx(float((end - kept).square().sum()), rel=1e-4)
    assert one.fit.tokens == FIT.numel()
    assert one.held_out.tokens == HELD_OUT.numel()


@torch.inference_mode()
def test_nothing_after_the_last_wanted_block_is_run_and_no_logits() -> None:
    activations = pass_of(batch_size=6)
    calls, head = count_runs(activations.block_runner.blocks), list[int]()
    activations.block_runner.resolved.model.lm_head.register_forward_hook(lambda *_: head.append(1))
    activations.statistics(Cut(start=2, end=3))
    assert head == []
    assert calls == [len(activations.batches)] * 4 + [0, 0], "one run a batch of each block up to the end of the cut"


@torch.inference_mode()
def test_a_replay_costs_what_the_pruned_model_costs() -> None:
    activations = pass_of()
    tokens = sum(activations.batches[number].predictions for number in activations.held_out_batches)
    for cut in windows(BLOCKS, 2):
        fitted = fit_cut(activations.statistics(cut), ridge=0.1).from_all_tokens
        loss = sum(variant_losses(activations, Variant.of([fitted])).values()) / tokens
        pruned = operate(tiny_model(), Pruning.of_cuts([fitted], []))
        assert loss == pytest.approx(mean_loss(pruned, HELD_OUT), rel=1e-4)
    assert sum(activations.dense_losses().values()) / tokens == pytest.approx(
        mean_loss(tiny_model(), HELD_OUT), rel=1e-5
    )


def test_the_angle_of_every_two_streams_is_that_of_the_selection() -> None:
    streams = torch.randn(4, 40, 8, generator=torch.Generator().manual_seed(0))
    found = mean_angles(torch.nn.functional.normalize(streams, dim=2))
    for one in range(4):
        for other in range(one, 4):
            expected = MeanAngle()
            expected.add(Stream(streams[one]), Stream(streams[other]), mask=torch.ones(40, dtype=torch.bool))
            assert float(found[one, other]) == pytest.approx(expected.value, abs=1e-3)
    assert torch.equal(found, found.T)


@torch.inference_mode()
def test_every_window_has_its_distance_and_few_are_kept_where_streams_are_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokens = token_ids(4, 16)
    activations = activations_of(tiny_model(), tokens[:2], tokens[2:], batch_size=2)
    found = layer_angles(activations)
    assert found is not None
    assert [len(row) for row in found.windows] == [BLOCKS - start for start in range(BLOCKS)]
    assert 0 < found.tokens <= 32
    if found.tokens == 32:  # then both are over the same tokens
        assert [row[0] for row in found.windows] == pytest.approx(found.blocks, abs=1e-3)
    assert all(0 < value < 1 for row in found.windows for value in row)
    monkeypatch.setattr("replaceme_core.engine.results.layer_angles.MOST_BYTES", 4 * 16 * (BLOCKS + 1) * 5)
    monkeypatch.setattr("replaceme_core.engine.results.layer_angles.MOST_WINDOWS", BLOCKS + BLOCKS - 1)
    found = layer_angles(activations)
    assert found is not None
    assert found.tokens <= 5
    assert [len(row) for row in found.windows] == [2] * (BLOCKS - 1) + [1]
