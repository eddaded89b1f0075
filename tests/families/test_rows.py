"""Every row of the table on live models: the residual identity, the fold, the surgery, the way to disk and back."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from replaceme_core.errors import NumericalFailure, UnsupportedFamily
from replaceme_core.families.resolve import ResolvedModel, resolve
from replaceme_core.families.table import FAMILIES
from replaceme_core.modeling.blockwise import BlockwiseModel
from replaceme_core.modeling.capture import Cut, FittedCut, run_pruned
from replaceme_core.modeling.save import save_model
from replaceme_core.modeling.surgery import fold, remove_blocks
from replaceme_core.modeling.verify import verify_saved
from tests.tiny import BLOCKS, VARIANTS, WIDTH, Variant, save_tiny, smallest_write, tiny_model, token_ids

every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)


def test_every_row_has_a_variant() -> None:
    assert {variant.model_type for variant in VARIANTS} == set(FAMILIES)


@every_variant
def test_the_stream_is_the_sum_of_its_writes(variant: Variant) -> None:
    model, tokens = tiny_model(variant), token_ids(2, 24)
    with torch.inference_mode():
        assert smallest_write(model, tokens) > 0.1, "the check would be blind to a missing write"
        assert BlockwiseModel(resolved=resolve(model)).prove(tokens) < 1e-5


@every_variant
@pytest.mark.parametrize(
    "wrong",
    [
        {"mlp_write": "self_attn.o_proj"},
        {"mlp_write": "post_attention_layernorm"},
        {"attention_write": "mlp.down_proj"},
        {"attention_write": "input_layernorm"},
        {"mlp_write": "mlp.up_proj"},
    ],
    ids=lambda wrong: "-".join(f"{key}={value}" for key, value in wrong.items()),
)
def test_a_wrong_tap_fails(variant: Variant, wrong: dict[str, str]) -> None:
    model = tiny_model(variant)
    layout = replace(FAMILIES[variant.model_type], **wrong)
    with torch.inference_mode(), pytest.raises(NumericalFailure, match="block 0"):
        BlockwiseModel(resolved=ResolvedModel(model=model, layout=layout)).prove(token_ids(2, 24))


@every_variant
def test_blockwise_is_the_model_itself(variant: Variant) -> None:
    model, tokens = tiny_model(variant), token_ids(3, 24)
    with torch.inference_mode():
        blockwise = BlockwiseModel(resolved=resolve(model))
        stream = blockwise.enter(tokens)
        for block in range(BLOCKS):
            stream = blockwise.run(block, stream)
        assert torch.equal(blockwise.leave(stream, tokens), model(input_ids=tokens, use_cache=False).logits)


@every_variant
def test_the_fold_is_exact(variant: Variant) -> None:
    """In float64 the folded, shorter model gives the logits of the unfolded one with its map beside it."""
    model, tokens = tiny_model(variant).double(), token_ids(2, 24)
    fitted = _some_cut(seed=1)
    with torch.inference_mode():
        blockwise = BlockwiseModel(resolved=resolve(model))
        stream, _ = run_pruned(blockwise, blockwise.enter(tokens), done=[fitted], until=BLOCKS - 1)
        beside = blockwise.leave(stream, tokens)
        _prune(model, fitted)
        torch.testing.assert_close(model(input_ids=tokens, use_cache=False).logits, beside, rtol=1e-9, atol=1e-9)


@every_variant
def test_surgery_survives_the_way_to_disk(variant: Variant, tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source", variant=variant)
    model, tokens = AutoModelForCausalLM.from_pretrained(source), token_ids(2, 24)
    fitted = _some_cut(seed=2)
    with torch.inference_mode():
        _prune(model, fitted)
        expected = model(input_ids=tokens, use_cache=False).logits
        save_model(model, tmp_path / "pruned", source=source)
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")
        assert again.config.num_hidden_layers == BLOCKS - 2
        assert torch.equal(again(input_ids=tokens, use_cache=False).logits, expected)
        cached, uncached = (
            again.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                generation_config=GenerationConfig(max_new_tokens=12, do_sample=False, use_cache=use, pad_token_id=0),
            )
            for use in (True, False)
        )
        assert torch.equal(cached, uncached)
    verify_saved(tmp_path / "pruned", dtype=torch.float32, blocks=BLOCKS - 2, prompt=tokens[0], device="cpu")


@every_variant
def test_per_layer_lists_follow_the_blocks(variant: Variant) -> None:
    model = tiny_model(variant)
    kinds = getattr(model.config, "layer_types", None)
    _prune(model, _some_cut(seed=3))
    slots = [block.self_attn.layer_idx for block in resolve(model).blocks]
    assert slots == list(range(BLOCKS - 2))
    if kinds is not None:
        assert model.config.layer_types == [kinds[0], kinds[1], kinds[4], kinds[5]]


def test_mixed_blocks_keep_their_kind() -> None:
    """A sliding block behind a cut must not become a full one because its index is now lower."""
    variant = next(one for one in VARIANTS if one.name == "qwen2-sliding")
    model = tiny_model(variant)
    _prune(model, FittedCut(cut=Cut(start=1, end=2), delta=torch.zeros(WIDTH, WIDTH, dtype=torch.float64)))
    assert model.config.layer_types == ["full_attention", *["sliding_attention"] * 3]


def test_an_unknown_family_is_refused() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=64))
    with pytest.raises(UnsupportedFamily, match="'gpt2' is not supported; supported: llama"):
        resolve(model)


def _some_cut(*, seed: int) -> FittedCut:
    generator = torch.Generator().manual_seed(seed)
    delta = torch.randn(WIDTH, WIDTH, dtype=torch.float64, generator=generator) * 0.3
    return FittedCut(cut=Cut(start=2, end=3), delta=delta)


def _prune(model: object, fitted: FittedCut) -> None:
    resolved = resolve(model)  # type: ignore[arg-type]
    fold(resolved, fitted)
    remove_blocks(resolved, list(fitted.cut.blocks))
