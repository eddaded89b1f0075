"""One pass gives what many would, stored or not: streams, sums of every cut, replays and angles, to the bit."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from replaceme_core.engine.activations.capture import Activations
from replaceme_core.engine.activations.cut_sums import CutStatistics, schedule
from replaceme_core.engine.activations.tensor_store import (
    DamagedStore,
    FileStore,
    MemoryStore,
    SpillingStore,
    TensorStore,
)
from replaceme_core.engine.methods.replay import variant_losses
from replaceme_core.engine.methods.task import Candidate
from replaceme_core.engine.methods.windows import choose_window, fit_cut
from replaceme_core.engine.model.block_runner import BlockRunner, Hook, predictions_of, record_values
from replaceme_core.engine.model.changes import Cut, FittedCut, Variant, fold, remove_blocks, run_pruned, windows
from replaceme_core.engine.model.lazy_model import load_lazily
from replaceme_core.engine.model.load import load_model
from replaceme_core.engine.numerics.stream import MeanAngle, Stream, mean_angles
from replaceme_core.engine.results.layer_angles import layer_angles
from replaceme_core.families.resolve import resolve
from replaceme_core.request.defaults import FIRST_LOOK
from tests.fixtures.models.activations import CUTS, activations_of, count_runs, make_activations
from tests.fixtures.models.tasks import make_task
from tests.fixtures.models.tiny import BLOCKS, BY_NAME, WIDTH, save_tiny, tiny_model, token_ids

FIT, HELD_OUT = token_ids(6, 32, seed=1), token_ids(8, 32, seed=2)


def kept_in(streams: TensorStore | None, *, name: str = "llama", sink: bool = False) -> Activations:
    model = tiny_model(BY_NAME[name])
    if sink:
        with torch.no_grad():
            model.get_input_embeddings().weight[7] *= 4000
    return activations_of(model, FIT, HELD_OUT, store=streams)


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
    kept = kept_in(make(), sink=sink)
    for length in (1, 2, 5):
        cuts = windows(BLOCKS, length)
        passed = kept_in(None, sink=sink)
        expected, found = passed.windows(cuts), kept.windows(cuts)
        assert all(equal(one, other) for one, other in zip(found, expected, strict=True))
        for block in (*(cut.anchor for cut in cuts), BLOCKS):
            for batch in kept.held_out_batches:
                assert torch.equal(kept.read_or_run(block, batch), passed.read_or_run(block, batch))
    if sink:
        assert max(one.sinks for one in found) > 0


@torch.inference_mode()
@pytest.mark.parametrize("name", ["llama", "falcon-7b"])
def test_each_block_runs_once_for_all_cuts(name: str) -> None:
    kept = kept_in(MemoryStore(), name=name)
    runs = count_runs(kept.block_runner.blocks)
    for length in (1, 2, 4):
        kept.windows(windows(BLOCKS, length))
    kept.statistics(Cut(start=2, end=4))
    assert runs == [len(kept.batches)] * BLOCKS
    assert kept.dense_block_runs == sum(runs)


@torch.inference_mode()
def test_the_streams_are_those_of_the_model(make: Callable[[], TensorStore]) -> None:
    kept = kept_in(make())
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
def test_a_cut_on_a_pruned_prefix(make: Callable[[], TensorStore]) -> None:
    done = [FittedCut(cut=Cut(start=2, end=2), delta=torch.eye(WIDTH, dtype=torch.float64) * 0.2)]
    cut = Cut(start=4, end=5)
    expected = kept_in(None).statistics(cut, done=done)
    assert equal(kept_in(make()).statistics(cut, done=done), expected)


@torch.inference_mode()
def test_streams_are_stored_once_a_single_one_is_requested() -> None:
    kept = kept_in(None)
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
    monkeypatch.setattr("replaceme_core.engine.model.block_runner.release_memory", lambda: released.append(None))
    source, cuts = save_tiny(tmp_path / "model"), windows(BLOCKS, 2)
    for load, expected in ((load_model, 0), (load_lazily, BLOCKS + len(cuts))):
        activations = activations_of(load(source, dtype=torch.float32, device="cpu"), FIT, HELD_OUT, always_store=True)
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


@pytest.fixture
def block_runner() -> BlockRunner:
    return BlockRunner(resolved=resolve(tiny_model()))


def pass_of(block_runner: BlockRunner, **fields: object) -> Activations:
    given = {"fit": FIT, "held_out": HELD_OUT, "batch_size": 4, "advance": lambda _: None, **fields}
    return Activations(block_runner=block_runner, **given)  # type: ignore[arg-type]


def test_held_out_sequences_come_in_parts() -> None:
    """They alternate between two halves."""
    work = schedule(FIT, HELD_OUT, 4)
    assert [(len(batch.tokens), batch.held_out) for batch in work] == [(4, False), (2, False)] + [(1, True)] * 8
    assert [batch.second_half for batch in work] == [False] * 2 + [False, True] * 4
    assert torch.equal(torch.cat([batch.tokens for batch in work if batch.held_out]), HELD_OUT)


@torch.inference_mode()
def test_statistics_are_those_of_every_token(block_runner: BlockRunner) -> None:
    """Against streams from the model's own hidden states; the last window ends before the final norm (pitfall 1)."""
    fractions: list[float] = []
    statistics = pass_of(block_runner, advance=fractions.append).windows(windows(BLOCKS, 2))
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    for one in statistics:
        write, kept, end = hidden_streams(block_runner, one.cut)
        torch.testing.assert_close(one.fit.gram, (write.T @ write).double(), rtol=1e-4, atol=1e-2)
        torch.testing.assert_close(one.fit.cross, (write.T @ (end - kept)).double(), rtol=1e-4, atol=1e-2)
        assert one.fit.error == pytest.approx(float((end - kept).square().sum()), rel=1e-4)
        assert one.fit.tokens == FIT.numel()
        assert one.held_out.tokens == HELD_OUT.numel()


def hidden_streams(block_runner: BlockRunner, cut: Cut) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Write, kept and end (tokens, d) from one ordinary forward pass of the model."""
    blocks = block_runner.blocks
    with ExitStack() as stack:
        hooks = [
            stack.enter_context(record_values(Hook(module=module)))
            for module in (blocks[cut.anchor].mlp, blocks[cut.anchor], blocks[cut.end])
        ]
        block_runner.resolved.model(input_ids=FIT)
    write, kept, end = (seen[0].reshape(-1, WIDTH) for seen in hooks)
    return write, kept, end


@torch.inference_mode()
def test_nothing_after_the_last_wanted_block_is_run_and_no_logits(block_runner: BlockRunner) -> None:
    calls = count_runs(block_runner.blocks)
    head: list[int] = []
    block_runner.resolved.model.lm_head.register_forward_hook(lambda *_: head.append(1))
    pass_of(block_runner, held_out=HELD_OUT[:2], batch_size=6).statistics(Cut(start=2, end=3))
    assert head == []
    assert calls == [3, 3, 3, 3, 0, 0], "one run a batch of each block up to the end of the cut"


@torch.inference_mode()
def test_a_replay_costs_what_the_pruned_model_costs(block_runner: BlockRunner) -> None:
    activations = pass_of(block_runner)
    statistics, tokens = activations.windows(windows(BLOCKS, 2)), predictions_of(activations.held_out_tokens)
    replayed = []
    for one in statistics:
        fitted = fit_cut(one, ridge=0.1).from_all_tokens
        variant = Variant.of([fitted])
        replayed.append((fitted, sum(variant_losses(activations, variant)) / tokens))
    assert sum(activations.dense_losses()) / tokens == pytest.approx(whole_loss(tiny_model()), rel=1e-5)
    for fitted, loss in replayed:
        model = tiny_model()
        resolved = resolve(model)
        fold(resolved, fitted)
        remove_blocks(resolved, list(fitted.cut.blocks))
        assert loss == pytest.approx(whole_loss(model), rel=1e-4)


def whole_loss(model: object) -> float:
    return float(model(input_ids=HELD_OUT, labels=HELD_OUT).loss)  # type: ignore[operator]


@torch.inference_mode()
def test_a_later_cut_is_fitted_on_the_pruned_prefix_toward_the_dense_stream(block_runner: BlockRunner) -> None:
    first = FittedCut(cut=Cut(start=1, end=1), delta=torch.eye(WIDTH, dtype=torch.float64) * 0.2)
    statistics = pass_of(block_runner, batch_size=3).statistics(Cut(start=4, end=4), done=[first])
    dense = block_runner.enter(FIT)
    for block in range(5):
        dense = block_runner.run(block, dense)
    pruned, write = run_pruned(block_runner, block_runner.enter(FIT), done=[first], until=3)
    write, missing = write.reshape(-1, WIDTH), (dense - pruned).reshape(-1, WIDTH)
    torch.testing.assert_close(statistics.fit.cross, (write.T @ missing).double(), rtol=1e-4, atol=1e-2)


@torch.inference_mode()
def test_the_cut_of_least_loss_is_chosen_and_the_table_shows_why(block_runner: BlockRunner) -> None:
    activations = pass_of(block_runner)
    statistics = activations.windows(windows(BLOCKS, 2))
    table = table_of(block_runner, ridge=0.1, replays=9)
    assert [row.cut for row in table] == windows(BLOCKS, 2)
    finalists = sorted((row for row in table if row.held_out_loss is not None), key=lambda row: row.held_out_loss or 0)
    (chosen,) = (row for row in table if row.chosen)
    whole = {}
    for one in statistics:
        fitted = FittedCut(cut=one.cut, delta=fit_map_on_fit(one))
        losses = variant_losses(activations, Variant.of([fitted]))
        whole[one.cut] = sum(losses) / predictions_of(activations.held_out_tokens)
    assert len(finalists) == 4, "every candidate was replayed at least in part"
    assert chosen.held_out_loss == pytest.approx(whole[chosen.cut])
    assert whole[chosen.cut] <= sorted(whole.values())[1]


@torch.inference_mode()
def table_of(block_runner: BlockRunner, **method: object) -> list[Candidate]:
    task, _ = make_task(block_runner.resolved.model, remove=2, fit=FIT, held_out=HELD_OUT, method=method)
    return choose_window(task).candidates


def fit_map_on_fit(one: object) -> torch.Tensor:
    from replaceme_core.engine.numerics.solve import solve_delta

    return solve_delta(one.fit, ridge=0.1)  # type: ignore[attr-defined]


@torch.inference_mode()
def test_a_cut_that_was_eliminated_is_shown_beside_the_chosen_one(block_runner: BlockRunner) -> None:
    """What it was not replayed on may be easier or harder to predict; that is no property of the cut."""
    activations = pass_of(block_runner)
    statistics = activations.windows(windows(BLOCKS, 2))
    table = table_of(block_runner, ridge=0.1, replays=9)
    (chosen,) = (row for row in table if row.chosen)
    deltas = {one.cut: FittedCut(cut=one.cut, delta=fit_map_on_fit(one)) for one in statistics}

    def losses(row: Candidate, count: int) -> float:
        variant = Variant.of([deltas[row.cut]])
        batches = activations.held_out_batches[:count]
        return sum(variant_losses(activations, variant, batches=batches))

    tokens = predictions_of(activations.held_out_tokens)
    left_out = [row for row in table if row.estimated]
    assert left_out, "all cuts were replayed on all batches: the test shows nothing"
    for row in left_out:
        shown = row.held_out_loss - losses(chosen, 8) / tokens  # type: ignore[operator]
        behind = [
            (losses(row, count) - losses(chosen, count)) / predictions_of(activations.held_out_tokens[:count])
            for count in range(FIRST_LOOK, 8)
        ]
        assert min(abs(shown - one) for one in behind) < 1e-6, "the difference on the batches that both have"
    assert {row.tokens for row in table} == {FIT.numel() + HELD_OUT.numel()}


def few_activations() -> Activations:
    tokens = token_ids(4, 16)
    return activations_of(
        BlockRunner(resolved=resolve(tiny_model())), fit=tokens[:2], held_out=tokens[2:], batch_size=2
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
def test_every_window_has_its_distance() -> None:
    found = layer_angles(few_activations())
    assert found is not None
    assert [len(row) for row in found.windows] == [BLOCKS - start for start in range(BLOCKS)]
    assert 0 < found.tokens <= 32
    if found.tokens == 32:  # then both are over the same tokens
        assert [row[0] for row in found.windows] == pytest.approx(found.blocks, abs=1e-3)
    assert all(0 < value < 1 for row in found.windows for value in row)


@torch.inference_mode()
def test_few_are_kept_where_streams_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("replaceme_core.engine.results.layer_angles.MOST_BYTES", 4 * 16 * (BLOCKS + 1) * 5)
    monkeypatch.setattr("replaceme_core.engine.results.layer_angles.MOST_WINDOWS", BLOCKS + BLOCKS - 1)
    found = layer_angles(few_activations())
    assert found is not None
    assert found.tokens <= 5
    assert [len(row) for row in found.windows] == [2] * (BLOCKS - 1) + [1]
