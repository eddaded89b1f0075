"""Tiny random models with their tokenizer: one config per row of the family table, made in milliseconds."""

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from replaceme_core.families.resolve import resolve
from replaceme_core.modeling.blockwise import BlockwiseModel

BLOCKS = 6
WIDTH = 16
_COMMON = {
    "vocab_size": 260,
    "hidden_size": WIDTH,
    "intermediate_size": 40,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": 256,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A family, or a kind of block that it mixes."""

    name: str
    model_type: str
    config: dict[str, object]


_SLIDING = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}

VARIANTS = (
    Variant(name="llama", model_type="llama", config={}),
    Variant(name="llama-tied", model_type="llama", config={"tie_word_embeddings": True}),
    Variant(name="llama-bias", model_type="llama", config={"mlp_bias": True, "attention_bias": True}),
    Variant(name="mistral", model_type="mistral", config={"sliding_window": None}),
    Variant(name="mistral-sliding", model_type="mistral", config={"sliding_window": 8}),
    Variant(name="qwen2", model_type="qwen2", config={}),
    Variant(name="qwen2-sliding", model_type="qwen2", config=_SLIDING),
    Variant(name="qwen3", model_type="qwen3", config={"head_dim": 8}),
    Variant(name="qwen3-sliding", model_type="qwen3", config={"head_dim": 8, **_SLIDING}),
    Variant(name="phi", model_type="phi", config={}),
    Variant(name="phi-qk-norm", model_type="phi", config={"qk_layernorm": True}),
    Variant(name="phi3", model_type="phi3", config={}),
    Variant(name="phi3-sliding", model_type="phi3", config={"sliding_window": 8}),
    Variant(
        name="granite",
        model_type="granite",
        config={
            "residual_multiplier": 0.3,
            "embedding_multiplier": 0.5,
            "attention_multiplier": 0.7,
            "logits_scaling": 2.0,
        },
    ),
    Variant(name="granite-plain", model_type="granite", config={"mlp_bias": True}),
    Variant(name="smollm3", model_type="smollm3", config={"no_rope_layer_interval": 2}),
    Variant(
        name="smollm3-sliding",
        model_type="smollm3",
        config={"no_rope_layers": [1, 0, 0, 1, 0, 1], "use_sliding_window": True, "sliding_window": 8},
    ),
    Variant(name="gemma", model_type="gemma", config={"head_dim": 4}),
    Variant(name="gemma2", model_type="gemma2", config={"head_dim": 4, "sliding_window": 8}),
    Variant(name="gemma3", model_type="gemma3_text", config={"head_dim": 4, "sliding_window": 8}),
    Variant(
        name="gemma3-pattern",
        model_type="gemma3_text",
        config={"head_dim": 4, "sliding_window": 8, "sliding_window_pattern": 2},
    ),
    Variant(name="olmo2", model_type="olmo2", config={}),
    Variant(name="gpt2", model_type="gpt2", config={"n_inner": 40}),
    Variant(name="neox-parallel", model_type="gpt_neox", config={}),
    Variant(name="neox-sequential", model_type="gpt_neox", config={"use_parallel_residual": False}),
    Variant(name="falcon-7b", model_type="falcon", config={}),
    Variant(name="falcon-40b", model_type="falcon", config={"new_decoder_architecture": True, "num_kv_heads": 2}),
    Variant(
        name="falcon-11b",
        model_type="falcon",
        config={"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    ),
    Variant(
        name="falcon-rw",
        model_type="falcon",
        config={"parallel_attn": False, "multi_query": False, "alibi": True, "bias": True},
    ),
    Variant(name="opt", model_type="opt", config={"ffn_dim": 40}),
    Variant(
        name="opt-plain",
        model_type="opt",
        config={"ffn_dim": 40, "enable_bias": False, "layer_norm_elementwise_affine": False, "word_embed_proj_dim": 8},
    ),
    Variant(name="mixtral", model_type="mixtral", config={"num_local_experts": 4, "output_router_logits": True}),
    # As wide inside as outside: the shape cannot tell the axes of the stacked experts.
    Variant(name="mixtral-square", model_type="mixtral", config={"num_local_experts": 4, "intermediate_size": WIDTH}),
    Variant(name="qwen2-moe", model_type="qwen2_moe", config={**_EXPERTS, "shared_expert_intermediate_size": 32}),
    Variant(
        name="qwen2-moe-mixed",
        model_type="qwen2_moe",
        config={
            **_EXPERTS,
            **_SLIDING,
            "shared_expert_intermediate_size": 32,
            "decoder_sparse_step": 2,
            "mlp_only_layers": [5],
        },
    ),
    Variant(name="qwen3-moe", model_type="qwen3_moe", config={**_EXPERTS, "norm_topk_prob": True}),
    Variant(
        name="qwen3-moe-mixed",
        model_type="qwen3_moe",
        config={**_EXPERTS, **_SLIDING, "decoder_sparse_step": 2, "mlp_only_layers": [5]},
    ),
)


def tiny_config(variant: Variant = VARIANTS[0], **changes: object) -> PreTrainedConfig:
    return CONFIG_MAPPING[variant.model_type](**{**_COMMON, **variant.config, **changes})


def tiny_model(variant: Variant = VARIANTS[0], *, seed: int = 0, **changes: object) -> PreTrainedModel:
    """A float32 model whose every write is at least a tenth of the stream, biases and norms not left at their start."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(variant, **changes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1)
            elif parameter.ndim == 1:  # of a norm, rounded so that twice and half of it are exact in float32
                parameter.add_(torch.randn_like(parameter) * 0.1).mul_(1024).round_().div_(1024)
            else:
                parameter.normal_(std=0.3)
    return model


def token_ids(sequences: int, length: int, *, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (sequences, length), generator=torch.Generator().manual_seed(seed))


def smallest_write(model: PreTrainedModel, tokens: torch.Tensor) -> float:
    """The least |write| / |stream| over blocks and both writes, median over tokens."""
    blockwise = BlockwiseModel(resolved=resolve(model))
    stream, least = blockwise.enter(tokens), float("inf")
    for index in range(len(blockwise.blocks)):
        stream, *writes = blockwise.run_twice_tapped(index, stream)
        for write in writes:
            least = min(least, float((write.norm(dim=1) / stream.flatten(0, 1).norm(dim=1)).median()))
    return least


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and `<|end|>`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


def save_tiny(
    directory: Path,
    *,
    variant: Variant = VARIANTS[0],
    dtype: torch.dtype = torch.float32,
    chat_template: str | None = None,
    **changes: object,
) -> Path:
    """A model directory as `save_pretrained` writes it, with tokenizer."""
    model = tiny_model(variant, **changes).to(dtype)  # type: ignore[arg-type]
    model.save_pretrained(directory)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(directory)
    return directory
