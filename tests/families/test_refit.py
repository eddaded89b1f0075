"""Refitted projections: on every family the changes make just the stream that was promised, nearer to the dense one."""

from collections.abc import Callable

import pytest
import torch

from replaceme_core.engine.activations.capture import Activations
from replaceme_core.engine.methods.refit import Refit, Strength, refit_kept
from replaceme_core.engine.model.block_runner import BlockRunner
from replaceme_core.engine.model.changes import WeightChange, apply_changes, fold, remove_blocks
from replaceme_core.errors import NumericalFailure
from replaceme_core.families.resolve import resolve
from tests.fixtures.models.activations import activations_of
from tests.fixtures.models.tiny import BLOCKS, BY_NAME, VARIANTS, Variant, tiny_model, token_ids

REMOVED = [2, 4]
JETMOE = Variant(name="jetmoe", model_type="jetmoe", config={"num_local_experts": 4, "kv_channels": 8})
"""Its modules return several values."""
STRENGTH = Strength(anchor=1e-3, later=1e-2, reading=1e-2, fold=1e-2)
FIT, HELD_OUT = token_ids(12, 16, seed=1), token_ids(4, 16, seed=2)
FIT_BATCHES = range(3)
HELD_OUT_BATCHES, FIT_AGAIN = range(3, 7), range(7, 19)
"""The fit tokens are held out as well, so that their streams after a refit are known."""


def activations(block_runner: BlockRunner) -> Activations:
    return activations_of(block_runner, FIT, torch.cat([HELD_OUT, FIT]))


def refitted(
    block_runner: BlockRunner,
    *,
    strength: Strength = STRENGTH,
    removed: list[int] = REMOVED,
    unchanged_from: int = BLOCKS,
    on: Activations | None = None,
    advance: Callable[[float], None] = lambda _: None,
) -> Refit:
    with torch.inference_mode():
        return refit_kept(
            activations(block_runner) if on is None else on,
            removed=removed,
            strength=strength,
            fit=FIT_BATCHES,
            judged=[*HELD_OUT_BATCHES, *FIT_AGAIN],
            unchanged_from=unchanged_from,
            advance=advance,
        )


def held_out_stream(found: Refit) -> torch.Tensor:
    """The stream after the last block (sequences, positions, d)."""
    return torch.cat([found.streams[batch] for batch in HELD_OUT_BATCHES])


def nothing(block_runner: BlockRunner, *, removed: list[int] = REMOVED) -> Refit:
    """Plain removal."""
    return refitted(block_runner, strength=Strength(anchor=1e12, later=1e12, reading=1e12, fold=1e12), removed=removed)


def fit_error(found: Refit, block_runner: BlockRunner) -> float:
    """What is left at the last block on the fit tokens, relative."""
    dense = activations(block_runner)
    wanted = torch.cat([dense.before(BLOCKS, batch) for batch in FIT_AGAIN])
    return error(torch.cat([found.streams[batch] for batch in FIT_AGAIN]), wanted)


def error(stream: torch.Tensor, dense: torch.Tensor) -> float:
    return float((stream - dense).square().sum() / dense.square().sum())


@pytest.mark.parametrize("variant", [*VARIANTS, JETMOE], ids=lambda variant: variant.name)
@torch.inference_mode()
def test_the_operated_model_has_the_promised_stream(variant: Variant) -> None:
    model = tiny_model(variant)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    block_runner = BlockRunner(resolved=resolve(model))
    found = refitted(block_runner, unchanged_from=BLOCKS - 1)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name

    assert fit_error(found, block_runner) < fit_error(nothing(block_runner), block_runner)
    resolved = resolve(model)
    for one in found.folds:
        fold(resolved, one)
    apply_changes(resolved, found.changes)
    remove_blocks(resolved, REMOVED)
    operated = BlockRunner(resolved=resolve(model))
    stream = operated.enter(HELD_OUT)
    for block in range(BLOCKS - len(REMOVED)):
        stream = operated.run(block, stream)
    assert error(held_out_stream(found), stream) < 1e-8


@torch.inference_mode()
def test_maps_of_what_is_read_bring_blocks_nearer() -> None:
    """With output projections held fast, so that nothing else can."""
    block_runner = BlockRunner(resolved=resolve(tiny_model()))
    fixed = refitted(block_runner, strength=Strength(anchor=1e-3, later=1e9, reading=1e9, fold=1e-2))
    read = refitted(block_runner, strength=Strength(anchor=1e-3, later=1e9, reading=1e-2, fold=1e-2))
    assert fit_error(read, block_runner) < 0.99 * fit_error(fixed, block_runner)


@pytest.mark.parametrize("name", ["gemma2", "olmo2"])
@torch.inference_mode()
def test_where_a_norm_writes_the_stream_its_direction_is_made_good_too(name: str) -> None:
    """The norm's weight alone, which is all that a map before a cut could change, leaves far more."""
    variant = BY_NAME[name]
    block_runner = BlockRunner(resolved=resolve(tiny_model(variant)))
    sized = refitted(block_runner, strength=Strength(anchor=1e9, later=1e9, reading=1e9, fold=1e-2))
    turned = refitted(block_runner, strength=Strength(anchor=1e-3, later=1e-2, reading=1e9, fold=1e-2))
    left = [fit_error(found, block_runner) for found in (nothing(block_runner), sized, turned)]
    assert left[2] < 0.5 * left[1]
    assert left[1] < 0.9 * left[0]


AFTER_A_CUT = [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]


@pytest.mark.parametrize(
    ("removed", "unchanged_from", "anchor", "refitted_blocks"),
    [(REMOVED, BLOCKS, 1, [3, 5]), (REMOVED, BLOCKS - 1, 1, [3]), ([BLOCKS - 1], BLOCKS, BLOCKS - 2, [])],
)
@torch.inference_mode()
def test_what_changes_is_every_linear_map_after_the_first_cut_up_to_the_last_refitted_block(
    removed: list[int], unchanged_from: int, anchor: int, refitted_blocks: list[int]
) -> None:
    block_runner = BlockRunner(resolved=resolve(tiny_model()))
    found = refitted(block_runner, removed=removed, unchanged_from=unchanged_from)
    assert [(one.block, [name.split(".")[1] for name in one.parameters]) for one in found.changes] == [
        (anchor, ["down_proj"]),  # it reads the dense model's stream
        *((block, names) for block in refitted_blocks for names in AFTER_A_CUT),
    ]
    assert fit_error(found, block_runner) < fit_error(nothing(block_runner, removed=removed), block_runner)


def test_the_live_model_is_restored_when_a_fit_fails() -> None:
    model = tiny_model()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    calls: list[float] = []

    def stop(fraction: float) -> None:
        calls.append(fraction)
        if len(calls) == 2:
            raise KeyboardInterrupt

    block_runner = BlockRunner(resolved=resolve(model))
    with pytest.raises(KeyboardInterrupt):
        refitted(block_runner, advance=stop)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_a_change_that_does_not_fit_the_dtype_is_an_error() -> None:
    model = tiny_model().to(torch.float16)  # type: ignore[arg-type]
    weight = model.model.layers[1].mlp.down_proj.weight
    change = torch.full_like(weight, 1e6, dtype=torch.float32)
    with pytest.raises(NumericalFailure, match="larger ridge"):
        apply_changes(resolve(model), [WeightChange(block=1, parameter="mlp.down_proj.weight", change=change)])
