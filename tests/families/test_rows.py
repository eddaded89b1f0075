"""Every row of the table on live models: the residual identity, the fold, the surgery, the way to disk and back."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.harness import tiny_models
from replaceme_core.engine.methods.least_squares import fit_cut
from replaceme_core.engine.model.block_runner import BlockRunner
from replaceme_core.engine.model.changes import Cut, FittedCut, fold, remove_blocks, run_pruned
from replaceme_core.engine.model.load import stored_weights
from replaceme_core.engine.model.save import save_model, verify_saved
from replaceme_core.errors import NumericalFailure
from replaceme_core.families.layout import FAMILIES, Layout, MapStructure, Write, follow_blocks
from replaceme_core.families.resolve import ResolvedModel, check_residual, kind, resolve
from tests.fixtures.models.activations import activations_of
from tests.fixtures.models.tiny import (
    BLOCKS,
    VARIANTS,
    WIDTH,
    Variant,
    save_tiny,
    smallest_write,
    tiny_model,
    token_ids,
)

every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
CUT = Cut(start=2, end=2)
"""An odd number of blocks, so that those behind it would be of the wrong kind were it computed from the index."""
KEPT = [0, 1, 3, 4, 5]


@every_variant
def test_the_stream_is_the_sum_of_its_writes(variant: Variant) -> None:
    model, tokens = tiny_model(variant), token_ids(2, 24)
    with torch.inference_mode():
        assert smallest_write(model, tokens) > 0.1, "the check would be blind to a missing write"
        block_runner = BlockRunner(resolved=resolve(model))
        assert block_runner.prove(tokens) < 1e-5
        stream = block_runner.enter(tokens)
        for block in range(BLOCKS):
            stream = block_runner.run(block, stream)
        assert torch.equal(block_runner.leave(stream, tokens), model(input_ids=tokens, use_cache=False).logits)


def test_a_block_that_writes_nothing_is_as_good_as_any() -> None:
    """Such as those that mergekit inserts, their writes scaled by 0."""
    model, tokens = tiny_model(), token_ids(2, 24)
    with torch.inference_mode():
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            model.get_submodule(f"model.layers.3.{name}").weight.zero_()
        assert BlockRunner(resolved=resolve(model)).prove(tokens) < 1e-5
        stream = torch.ones(4, WIDTH)
        with pytest.raises(NumericalFailure, match=r"block 3 .* explains at most \S+$"):
            check_residual(block=3, before=stream, after=2 * stream, writes=[0 * stream])
        stream = stream.bfloat16()
        with pytest.raises(NumericalFailure, match="try dtype float32"):
            check_residual(block=3, before=stream, after=2 * stream, writes=[0 * stream])


@every_variant
def test_a_wrong_module_fails(variant: Variant) -> None:
    """Every module of the block but the right ones, in both places, and the right ones read in the wrong way."""
    model, tokens = tiny_model(variant), token_ids(2, 24)
    tried = 0
    for wrong in wrong_layouts(model, FAMILIES[variant.model_type], tokens):
        block_runner = BlockRunner(resolved=ResolvedModel(model=model, layout=wrong))
        with torch.inference_mode(), pytest.raises(NumericalFailure, match="block 0"):
            block_runner.prove(tokens)
        tried += 1
    assert tried >= 10


def wrong_layouts(model: PreTrainedModel, right: Layout, tokens: torch.Tensor) -> Iterator[Layout]:
    """Rows that are wrong in one field."""
    outputs, resolved = outputs_of_block_0(model, tokens), resolve(model)
    for write in resolved.writes(resolved.blocks[0]):
        for path, output in outputs.items():
            # Some modules hand on what another has computed: mlp what mlp.down_proj has, for one.
            given = outputs[write.module]
            if output.numel() != given.numel() or not torch.equal(output.flatten(), given.flatten()):
                yield replace(right, kinds=changed(right, partial(elsewhere, write.module, path)))
        if resolved.scale(write) != 1:
            yield replace(right, kinds=changed(right, lambda one: {"scale": None}))
    if right.added_in_place and getattr(model.config, "parallel_attn", False):
        yield replace(right, added_in_place=False)


def elsewhere(correct: str, path: str, write: Write) -> dict[str, Any]:
    return {"module": path} if write.module == correct else {}


def changed(row: Layout, change: Callable[[Write], dict[str, Any]]) -> tuple[tuple[Write, ...], ...]:
    """The kinds of a row with the fields that `change` returns for each write."""
    return tuple(tuple(replace(write, **change(write)) for write in kind) for kind in row.kinds)


def outputs_of_block_0(model: PreTrainedModel, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """By path, what each module of block 0 returns that is called once and returns a tensor."""
    seen: dict[str, list[torch.Tensor]] = {}

    def collect(path: str, output: object) -> None:
        first = output[0] if isinstance(output, tuple) else output
        if isinstance(first, torch.Tensor):
            seen.setdefault(path, []).append(first.clone())

    handles = [
        module.register_forward_hook(lambda _module, _inputs, output, path=path: collect(path, output))
        for path, module in resolve(model).blocks[0].named_modules()
        if path
    ]
    with torch.inference_mode():
        model(input_ids=tokens)
    for handle in handles:
        handle.remove()
    return {path: outputs[0] for path, outputs in seen.items() if len(outputs) == 1}


@every_variant
def test_the_fold_is_exact(variant: Variant) -> None:
    """In float64 the folded, shorter model gives the logits of the unfolded one with its map beside it."""
    tokens = token_ids(2, 24)
    for anchor in (0, 1):  # where a family mixes kinds of blocks, these are not alike
        model = tiny_model(variant).double()
        if "moe" in variant.model_type or variant.model_type == "mixtral":
            model.set_experts_implementation("eager")  # the others know no float64
        resolved = resolve(model)
        fitted = some_map(resolved, cut=Cut(start=anchor + 1, end=3), seed=anchor)
        with torch.inference_mode():
            block_runner = BlockRunner(resolved=resolved)
            stream, _ = run_pruned(block_runner, block_runner.enter(tokens), done=[fitted], until=BLOCKS - 1)
            beside = block_runner.leave(stream, tokens)
            prune(model, fitted)
            torch.testing.assert_close(model(input_ids=tokens, use_cache=False).logits, beside, rtol=1e-9, atol=1e-9)


@every_variant
def test_what_is_fitted_is_what_is_folded(variant: Variant) -> None:
    """The residual that the statistics promise is the one that the folded model leaves: scales and all."""
    model, tokens = tiny_model(variant), token_ids(8, 24)
    anchor, end = CUT.anchor, CUT.end
    with torch.inference_mode():
        block_runner = BlockRunner(resolved=resolve(model))
        diagonal = block_runner.resolved.structure is MapStructure.DIAGONAL
        statistics = activations_of(block_runner, tokens, tokens, batch_size=8).statistics(CUT, diagonal=diagonal)
        fitted = fit_cut(statistics, ridge=1e-6)
        promised, delta = fitted.residual, fitted.from_all_tokens.delta
        dense = block_runner.enter(tokens)
        for block in range(end + 1):
            dense = block_runner.run(block, dense)
        fold(block_runner.resolved, FittedCut(cut=CUT, delta=delta))
        folded = block_runner.enter(tokens)
        for block in range(anchor + 1):
            folded = block_runner.run(block, folded)
    left = float((folded - dense).square().sum() / dense.square().sum())
    assert left == pytest.approx(promised, rel=1e-3)
    assert left < statistics.fit.residual(torch.zeros_like(statistics.fit.gram)) * 0.999, "worse than plain removal"


@every_variant
def test_a_pruned_model_is_the_same_after_saving(variant: Variant, tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source", variant=variant)
    stored_weights(source)  # they agree with the config
    model, tokens = AutoModelForCausalLM.from_pretrained(source), token_ids(2, 24)
    with torch.inference_mode():
        prune(model, some_map(resolve(model), cut=CUT, seed=2))
        expected = model(input_ids=tokens, use_cache=False).logits
        save_model(model, tmp_path / "pruned", source=source)
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")
        assert again.config.num_hidden_layers == BLOCKS - 1
        assert torch.equal(again(input_ids=tokens, use_cache=False).logits, expected)
    verify_saved(tmp_path / "pruned", dtype=torch.float32, blocks=BLOCKS - 1, prompt=tokens[0], device="cpu")


@every_variant
def test_per_layer_lists_follow_the_blocks(variant: Variant) -> None:
    """Each kept block is, as the config now describes it, of the kind that it was: also in a model built anew."""
    model = tiny_model(variant)
    row = FAMILIES[variant.model_type]
    before = {name: getattr(model.config, name, None) for name in row.per_layer_lists}
    kinds = [kind(resolve(model).blocks[index]) for index in KEPT]
    prune(model, some_map(resolve(model), cut=CUT, seed=3))
    for slot, block in enumerate(resolve(model).blocks):
        assert {vars(one)["layer_idx"] for one in block.modules() if "layer_idx" in vars(one)} == {slot}
    for name, values in before.items():
        if values is not None:
            assert getattr(model.config, name) == [values[index] for index in KEPT]
    anew = AutoModelForCausalLM.from_config(type(model.config).from_dict(model.config.to_dict()))
    assert [kind(block) for block in resolve(anew).blocks] == kinds


def some_map(resolved: ResolvedModel, *, cut: Cut, seed: int) -> FittedCut:
    """A map far from the identity. A diagonal one is of powers of two, since some norms compute in float32 always."""
    generator = torch.Generator().manual_seed(seed)
    if resolved.structure is MapStructure.DIAGONAL:
        powers = torch.tensor([0.5, 1.0, 2.0, -1.0], dtype=torch.float64)
        delta = (powers[torch.randint(0, 4, (WIDTH,), generator=generator)] - 1).diag()
    else:
        delta = torch.randn(WIDTH, WIDTH, dtype=torch.float64, generator=generator) * 0.3
    return FittedCut(cut=cut, delta=delta)


def prune(model: PreTrainedModel, fitted: FittedCut) -> None:
    resolved = resolve(model)
    fold(resolved, fitted)
    remove_blocks(resolved, list(fitted.cut.blocks))


@pytest.mark.parametrize(
    ("model_type", "without"),
    [
        ("granitemoehybrid", {"num_local_experts": 0}),
        ("deepseek_v2", {"q_lora_rank": None}),
        ("ernie4_5_moe", {"moe_num_shared_experts": 0}),
        ("jamba", {"attn_layer_period": 3, "attn_layer_offset": 2}),
        ("jamba", {"attn_layer_period": 3, "attn_layer_offset": 1}),
    ],
)
def test_models_without_what_others_of_their_type_have_are_bound(model_type: str, without: dict[str, object]) -> None:
    """As most Granite 4, DeepSeek-V2-Lite and the large ERNIE 4.5 are; Jamba has attention with experts and without."""
    sizes = {**tiny_models.fitting_sizes(model_type), **without}
    resolved = resolve(tiny_models.built(tiny_models.tiny_config(model_type, **sizes)))
    assert all(resolved.writes(block) for block in resolved.blocks)


def test_the_attention_blocks_that_lfm2_lists_are_followed() -> None:
    config = tiny_models.tiny_config("lfm2", full_attn_idxs=[2, 4])
    follow_blocks(config, layout=FAMILIES["lfm2"], kept=[0, 1, 2, 4])
    assert config.full_attn_idxs == [2, 3]
    assert [kind == "full_attention" for kind in config.layer_types] == [False, False, True, True]
