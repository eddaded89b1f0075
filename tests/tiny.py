"""Tiny random models with their tokenizer: one config per row of the family table, made in milliseconds."""

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from replaceme_core.families.resolve import resolve
from replaceme_core.modeling.blockwise import BlockwiseModel, tap

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


VARIANTS = (
    Variant(name="llama", model_type="llama", config={}),
    Variant(name="llama-tied", model_type="llama", config={"tie_word_embeddings": True}),
    Variant(name="llama-bias", model_type="llama", config={"mlp_bias": True, "attention_bias": True}),
    Variant(name="mistral", model_type="mistral", config={"sliding_window": None}),
    Variant(name="mistral-sliding", model_type="mistral", config={"sliding_window": 8}),
    Variant(name="qwen2", model_type="qwen2", config={}),
    Variant(
        name="qwen2-sliding",
        model_type="qwen2",
        config={"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3},
    ),
    Variant(name="qwen3", model_type="qwen3", config={"head_dim": 8}),
    Variant(
        name="qwen3-sliding",
        model_type="qwen3",
        config={"head_dim": 8, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3},
    ),
)


def tiny_model(variant: Variant = VARIANTS[0], *, seed: int = 0, **changes: object) -> PreTrainedModel:
    """A float32 model whose every write is at least a tenth of the stream, biases and norms not left at their start."""
    torch.manual_seed(seed)
    config = CONFIG_MAPPING[variant.model_type](**{**_COMMON, **variant.config, **changes})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1)
            elif "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            else:
                parameter.normal_(std=0.3)
    return model


def token_ids(sequences: int, length: int, *, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (sequences, length), generator=torch.Generator().manual_seed(seed))


def smallest_write(model: PreTrainedModel, tokens: torch.Tensor) -> float:
    """The least |write| / |stream| over blocks and both writes, median over tokens."""
    resolved = resolve(model)
    blockwise = BlockwiseModel(resolved=resolved)
    stream, least = blockwise.enter(tokens), float("inf")
    for index, block in enumerate(blockwise.blocks):
        with tap(resolved.attention_write(block)) as attention, tap(resolved.mlp_write(block)) as mlp:
            stream = blockwise.run(index, stream)
        for write in (attention[0], mlp[0]):
            least = min(least, float((write.norm(dim=-1) / stream.norm(dim=-1)).median()))
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
