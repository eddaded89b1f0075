"""Blocks run one at a time: in parts where memory runs out, with hooks, and the loss of a stream."""

from pathlib import Path

import pytest
import torch
from torch import nn

from replaceme_core.engine.methods.refit import Strength, refit_kept
from replaceme_core.engine.model import block_runner as module
from replaceme_core.engine.model.block_runner import BlockRunner, replace_forward, returning, summed_loss
from replaceme_core.engine.model.changes import Cut
from replaceme_core.engine.model.lazy_model import load_lazily
from replaceme_core.engine.model.load import load_model
from replaceme_core.families.resolve import resolve
from tests.fixtures.models.activations import activations_of
from tests.fixtures.models.tiny import BLOCKS, BY_NAME, save_tiny, tiny_model, token_ids

TOKENS = token_ids(7, 16)
ERRORS = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to"),
)


def starve(module: nn.Module, *, at_most: int, error: Exception) -> None:
    """Let `module` fail for more than `at_most` sequences, as an allocator would."""
    forward = module.forward

    def refuse(stream: torch.Tensor, *args: object, **kwargs: object) -> object:
        if len(stream) > at_most:
            raise error
        return forward(stream, *args, **kwargs)

    vars(module)["forward"] = refuse


@torch.inference_mode()
@pytest.mark.parametrize(("sequences", "sizes"), [(3, [3]), (4, [2, 2]), (8, [3, 3, 2])])
def test_a_batch_goes_through_a_block_in_parts_whose_memory_is_reused(
    monkeypatch: pytest.MonkeyPatch, sequences: int, sizes: list[int]
) -> None:
    """As even as they can be; here three sequences fit."""
    tokens = token_ids(sequences, 16)
    block_runner = BlockRunner(resolved=resolve(tiny_model()))
    stream = block_runner.enter(tokens)
    monkeypatch.setattr("replaceme_core.engine.model.block_runner.PART_BYTES", 3 * 4 * stream[0].nbytes)
    seen: list[int] = []
    block_runner.blocks[0].mlp.register_forward_pre_hook(lambda _module, inputs: seen.append(len(inputs[0])))
    after = block_runner.run(0, stream)
    assert seen == sizes
    alone = torch.cat([block_runner.run(0, one) for one in stream.split(1)])
    torch.testing.assert_close(after, alone)
    assert block_runner.halvings == 0


@torch.inference_mode()
@pytest.mark.parametrize("error", ERRORS, ids=["accelerator", "host"])
@pytest.mark.parametrize("name", ["opt", "mixtral"])
def test_streams_and_writes_are_those_of_the_whole_batch(name: str, error: Exception) -> None:
    variant = BY_NAME[name]
    plain, starved = (BlockRunner(resolved=resolve(tiny_model(variant))) for _ in range(2))
    starve(starved.blocks[2], at_most=2, error=error)
    stream, other = plain.enter(TOKENS), starved.enter(TOKENS)
    for block in range(BLOCKS):
        stream, *writes = plain.run_with_writes(block, stream)
        other, *others = starved.run_with_writes(block, other)
        for one, two in zip((stream, *writes), (other, *others), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)
    assert (starved.max_sequences, starved.halvings) == (2, 2), "7, 4, 2"
    assert plain.halvings == 0


@torch.inference_mode()
@pytest.mark.parametrize("name", ["gemma2", "mixtral"])
def test_a_refit_is_that_of_the_whole_batch(name: str) -> None:
    """Also where a block is run in part only."""
    variant = BY_NAME[name]
    changes = []
    for starving in (False, True):
        block_runner = BlockRunner(resolved=resolve(tiny_model(variant)))
        activations = activations_of(block_runner, TOKENS, TOKENS)
        if starving:
            activations.capture()
            starve(block_runner.blocks[3], at_most=1, error=ERRORS[0])
        strength = Strength(anchor=0.1, later=0.1, reading=0.1, fold=0.1)
        found = refit_kept(
            activations,
            removed=[2],
            strength=strength,
            fit=activations.fit_batches,
            judged=activations.held_out_batches,
            unchanged_from=BLOCKS,
            advance=lambda _: None,
        )
        assert (block_runner.halvings > 0) == starving
        changes.append(found.changes)
    assert len(changes[0]) > 1
    for one, other in zip(*changes, strict=True):
        torch.testing.assert_close(one.change, other.change, rtol=1e-2, atol=1e-3)


@torch.inference_mode()
def test_it_is_recorded() -> None:
    block_runner = BlockRunner(resolved=resolve(tiny_model()))
    starve(block_runner.blocks[1], at_most=1, error=ERRORS[0])
    activations = activations_of(block_runner, TOKENS, TOKENS)
    activations.statistics(Cut(start=2, end=3))
    record = activations.record()
    assert record.batch_halvings == 2
    assert ("batch_halvings", 2.0, "times") in record.metrics()


@torch.inference_mode()
@pytest.mark.parametrize(("at_most", "error"), [(0, ERRORS[0]), (1, RuntimeError("shapes do not match"))])
def test_what_halving_does_not_help_is_raised(at_most: int, error: Exception) -> None:
    block_runner = BlockRunner(resolved=resolve(tiny_model()))
    starve(block_runner.blocks[1], at_most=at_most, error=error)
    stream = block_runner.run(0, block_runner.enter(TOKENS))
    with pytest.raises(type(error), match=str(error)):
        block_runner.run(1, stream)


def test_a_forward_set_by_another_library_is_restored() -> None:
    module = nn.Linear(2, 2)
    vars(module)["forward"] = forward = lambda values: values + 1
    with replace_forward(module, returning(torch.zeros(1, 2))):
        assert not module(torch.zeros(1, 2)).any()
    assert vars(module)["forward"] is forward
    assert torch.equal(module(torch.zeros(1, 2)), torch.ones(1, 2))


@torch.inference_mode()
def test_parts_of_the_logits_are_smaller_for_a_lazily_loaded_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOGITS_AT_ONCE", 8 * 260)
    monkeypatch.setattr(module, "LOGITS_AT_ONCE_BY_BLOCK", 2 * 260)
    source, tokens = save_tiny(tmp_path / "model"), token_ids(1, 17)
    losses, pieces = [], []
    for load in (load_model, load_lazily):
        block_runner = BlockRunner(resolved=resolve(load(source, dtype=torch.float32, device="cpu")))
        stream = block_runner.enter(tokens)
        for block in range(len(block_runner.blocks)):
            stream = block_runner.run(block, stream)
        positions = list[int]()
        block_runner.resolved.model.register_forward_hook(
            lambda _, args, output, positions=positions: positions.append(output.logits.shape[1])
        )
        losses.append(summed_loss(block_runner, stream, tokens))
        pieces.append(positions)
    assert pieces == [[8, 8], [2] * 8]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_parts_of_the_logits_fit_a_table_of_positions(name: str) -> None:
    """The predictions of a batch may be more than a sequence of the model can have."""
    model, tokens = tiny_model(BY_NAME[name], max_position_embeddings=16), token_ids(5, 16)
    block_runner = BlockRunner(resolved=resolve(model))
    stream = block_runner.enter(tokens)
    for block in range(BLOCKS):
        stream = block_runner.run(block, stream)
    found = summed_loss(block_runner, stream, tokens)
    assert found == pytest.approx(5 * 15 * float(model(input_ids=tokens, labels=tokens).loss), rel=1e-5)
