"""A tiny model with random weights of every type that transformers knows, from what configs call their sizes."""

import contextlib
import dataclasses
from collections.abc import Iterator
from copy import deepcopy

import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.initialization import no_init_weights
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

from benchmarks.harness.discover import NotFound
from replaceme_core.families.resolve import embeddings

Fields = dict[str, object]

WIDTH, BLOCKS, LENGTH = 48, 6, 24
MOST_PARAMETERS = 20_000_000
SIZES: dict[str, int | float | None] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "embedding_size", "lru_width", "block_dim"), WIDTH),
    **dict.fromkeys(("word_embed_proj_dim", "attention_hidden_size", "model_dim"), WIDTH),
    **dict.fromkeys(("n_layer", "n_layers", "num_layers", "num_hidden_layers", "decoder_layers"), BLOCKS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "swa_num_attention_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads", "xlstm_num_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "n_kv_heads", "swa_num_key_value_heads"), 2),
    **dict.fromkeys(("num_global_key_value_heads", "multi_query_group_num", "n_mamba_heads"), 2),
    **dict.fromkeys(("head_dim", "attention_head_dim", "kv_channels", "global_head_dim", "swa_head_dim"), 16),
    **dict.fromkeys(("v_head_dim", "swa_v_head_dim", "qk_nope_head_dim", "index_head_dim", "index_topk"), 16),
    **dict.fromkeys(
        ("intermediate_size", "ffn_hidden_size", "n_inner", "ffn_dim", "d_ff", "intermediate_size_mlp"), 80
    ),
    **dict.fromkeys(("decoder_ffn_dim", "encoder_ffn_dim", "block_ff_dim", "dense_intermediate_size"), 80),
    **dict.fromkeys(("prefix_dense_intermediate_size", "hidden_dim"), 80),
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size", "expert_intermediate_size"), 40),
    **dict.fromkeys(("shared_expert_intermediate_size", "shared_intermediate_size"), 56),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk", "top_k_experts", "num_experts_per_token"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "num_shared_experts", "moe_num_shared_experts"), 1),
    **dict.fromkeys(("n_groups", "mamba_n_groups", "mamba_ngroups", "moe_layer_start_index"), 1),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), 96),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length"), 128),
    **dict.fromkeys(("q_lora_rank", "o_lora_rank"), 24),
    **dict.fromkeys(("sliding_window", "attention_window_size"), 16),
    **dict.fromkeys(("chunk_size", "mamba_chunk_size"), 8),
    **dict.fromkeys(("attention_chunk_size", "qk_rope_head_dim", "rotary_dim", "hidden_size_per_layer_input"), 8),
    **dict.fromkeys(("mamba_d_state", "ssm_state_size", "state_size", "mamba_state_dim"), 8),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads"), 6),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "linear_key_head_dim", "linear_value_head_dim"), 16),
    **dict.fromkeys(("mamba_dt_rank", "time_step_rank", "mamba_d_conv", "linear_conv_kernel_dim"), 4),
    **dict.fromkeys(("num_nextn_predict_layers", "num_mtp_layers"), 0),
    **dict.fromkeys(("max_window_layers", "first_k_dense_replace", "num_dense_layers", "n_dense_layers"), 2),
    **dict.fromkeys(("decoder_sparse_step", "interleave_moe_layer_step", "expert_layer_period"), 2),
    **dict.fromkeys(("full_attention_interval", "no_rope_layer_interval"), 3),
    "attn_layer_period": 2,
    **dict.fromkeys(("attn_layer_offset", "expert_layer_offset"), 1),
    **dict.fromkeys(("linear_num_key_heads", "index_n_heads"), 2),
    **dict.fromkeys(("embed_dim", "out_hidden_size", "projection_dim", "mm_hidden_size", "d_vision"), WIDTH),
    **dict.fromkeys(("image_token_id", "image_token_index", "video_token_id", "audio_token_id", "boi_token_id"), 91),
    **dict.fromkeys(("boi_token_index", "eoi_token_index", "eoi_token_id", "vision_start_token_id"), 92),
    **dict.fromkeys(("vision_end_token_id", "vision_token_id", "boa_token_id", "eoa_token_id"), 93),
    "image_size": 28,
    "patch_size": 14,
    "depth": 2,
    "mm_tokens_per_image": 4,
    "kv_lora_rank": 20,
    "linear_num_value_heads": 4,
    "mamba_d_ssm": 96,
    "mamba_intermediate_size": 96,
    **dict.fromkeys(("num_expert_group", "mamba_n_groups"), 1),
    "conv_L_cache": 3,
    "layer_group_size": 3,
    "linear_num_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""What a config may call each size. Those of one tensor differ, so that no axis is taken for another."""

_MIXERS = ["linear_attention", "linear_attention", "full_attention", "linear_attention", "full_attention"]
FEW_BLOCKS: Fields = dict.fromkeys(("num_hidden_layers", "num_layers", "encoder_layers", "depth"), 2)
"""Of a tower: not as many as the language model has."""

_PLAIN_GEMMA4: Fields = {
    "hidden_size_per_layer_input": 0,
    "num_kv_shared_layers": 0,
    "layer_types": [
        *("sliding_attention", "full_attention", "sliding_attention"),
        *("sliding_attention", "sliding_attention", "full_attention"),
    ],
}
_ROTATIONS: Fields = {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 2, 2]}}
SPECIAL: dict[str, Fields] = {
    "bamba": {"attn_layer_indices": [1, 4]},
    "jamba": {"attn_layer_period": 3},  # attention and experts in blocks of their own, as well as together
    "dots3_note_text": {"num_key_value_heads": 4},
    "granitemoehybrid": {"layer_types": [*_MIXERS, "linear_attention"]},
    "lfm2": {"full_attn_idxs": [2, 4]},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention", "conv", "full_attention", "conv"]},
    **dict.fromkeys(("gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text"), _PLAIN_GEMMA4),
    **dict.fromkeys(("glm4v", "glm4v_moe", "glm46v", "glm_ocr", "qwen2_vl", "qwen2_5_vl"), _ROTATIONS),
    "nemotron_h": {"layers_block_type": [*_MIXERS[:3], "moe", "mlp", "full_attention"]},
    "qwen4_exp_text": {"token_budget": 16, "compress_ratio": 4},
    "stablelm": {"num_attention_heads": 3, "num_key_value_heads": 3},
    "zaya": {"num_experts_per_tok": 1},
}
"""What single types need beside."""

ALTERNATIVES: tuple[dict[str, int], ...] = (
    {},
    {"head_dim": 8, "num_key_value_heads": 4},  # one width for all rotated parts
    {"head_dim": 12},  # heads that are together as wide as the stream
    {"num_experts_per_tok": 1},
    {"mamba_num_heads": 4, "num_heads": 8, "head_dim": 12},
)
"""Tried one after the other, until a model of the type can be built and run."""


IMAGE_TYPES = sorted(
    {
        *MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        *MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        *(name for name in MODEL_MAPPING_NAMES if name.endswith("_vision_model")),
    }
    & set(CONFIG_MAPPING) - {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES}
)
"""Types of models that make embeddings of images."""


def tiny_config(model_type: str, **changes: object) -> PreTrainedConfig:
    """The config of a type with the sizes above. Raises whatever the type raises where they do not go together."""
    kind_of_config = CONFIG_MAPPING[model_type]
    known = kind_of_config().to_dict()
    parts = {}
    for name in parts_of(kind_of_config, known):
        senses = "vision" in name or "audio" in name
        beside = senses != (model_type in IMAGE_TYPES)
        parts[name] = {**fields(known[name], FEW_BLOCKS if beside else changes), **kept(known[name])}
    return kind_of_config(**{**fields(known, {} if parts else changes), **parts})


def parts_of(kind_of_config: type[PreTrainedConfig], known: Fields) -> list[str]:
    """The fields of a config that hold the configs of its parts: a language model, towers for images and sound."""
    return [name for name in kind_of_config.sub_configs if isinstance(known.get(name), dict)]


def fields(known: Fields, changes: Fields) -> Fields:
    """Of the fields that a config has: the sizes above, factors that tell where they are applied, and the `changes`."""
    sizes = {name: value for name, value in SIZES.items() if name in known and not isinstance(known[name], list | dict)}
    factors = {name: 0.31 + 0.053 * number for number, name in enumerate(sorted(known)) if name.endswith("multiplier")}
    factors = {name: value for name, value in factors.items() if isinstance(known[name], float)}
    return {**sizes, **factors, **{name: value for name, value in changes.items() if name in known}}


def kept(known: Fields) -> Fields:
    """What a part of a config must have to be read alone."""
    return {"model_type": known["model_type"]} if "model_type" in known else {}


def class_for(config: PreTrainedConfig) -> type[AutoModelForCausalLM | AutoModelForImageTextToText | AutoModel]:
    """The class that builds the whole model, with its towers."""
    if config.model_type in IMAGE_TYPES:
        return AutoModel
    whole = config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    return AutoModelForImageTextToText if whole else AutoModelForCausalLM


def built(config: PreTrainedConfig) -> PreTrainedModel:
    """A model with random weights, in eval mode. Raises `NotFound` for one that is not tiny."""
    size = sum(parameter.numel() for parameter in on_meta(config).parameters())
    if size > MOST_PARAMETERS:
        raise NotFound("its sizes are not those that are known here")
    torch.manual_seed(0)
    model: PreTrainedModel = (
        class_for(config).from_config(deepcopy(config), dtype=torch.float32, attn_implementation="eager").eval()
    )
    with contextlib.suppress(Exception):
        model.set_experts_implementation("eager")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            else:
                parameter.normal_(std=0.2)
    return model


def on_meta(config: PreTrainedConfig) -> PreTrainedModel:
    """The same without weights."""
    with torch.device("meta"), no_init_weights():
        model: PreTrainedModel = class_for(config).from_config(deepcopy(config), attn_implementation="eager")
    return model


def tokens(sequences: int = 2, *, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 90, (sequences, LENGTH), generator=torch.Generator().manual_seed(seed))


def images(count: int = 2, *, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, SIZES["image_size"], SIZES["image_size"], generator=generator)


def given(model_type: str, *, seed: int = 0) -> torch.Tensor:
    """What a model of the type reads: tokens, or images."""
    return images(seed=seed) if model_type in IMAGE_TYPES else tokens(seed=seed)


def answers(model: PreTrainedModel) -> torch.Tensor:
    """The logits of a language model, the embeddings of a model of images."""
    with torch.no_grad():
        if model.config.model_type in IMAGE_TYPES:
            return embeddings(model, images())
        logits: torch.Tensor = model(input_ids=tokens(), use_cache=False).logits
    return logits


def fitting_sizes(model_type: str) -> Fields:
    """What the type needs beside the sizes above, so that a model can be built and run. Raises `NotFound`."""
    failure = ""
    for changes in ALTERNATIVES:
        sizes = {**changes, **SPECIAL.get(model_type, {})}
        try:
            run(tiny_config(model_type, **sizes))
        except Exception as error:  # whatever a type raises: its sizes do not go together
            failure = failure or first_line(error)
        else:
            return sizes
    raise NotFound(f"no tiny model of it could be built and run: {failure}")


def run(config: PreTrainedConfig) -> None:
    answers(built(config))


def first_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) < 160 else f"{text[:157]}..."


_OF_A_CLASS = """
    vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim
    image_size patch_size
"""


def sizes_of(part: type[PreTrainedConfig]) -> tuple[tuple[str, int], ...]:
    """What the class of a part has of these sizes; what it computes from others is not among them."""
    found = ((name, getattr(part, name, None)) for name in _OF_A_CLASS.split())
    return tuple((name, value) for name, value in found if isinstance(value, int))


_IRRELEVANT = """
    return_dict output_hidden_states output_attentions torchscript use_cache tie_word_embeddings is_encoder_decoder
    tie_encoder_decoder chunk_size_feed_forward output_router_logits add_cross_attention gradient_checkpointing
"""
"""Flags that say nothing of how a block is built."""
WITHOUT: Fields = {
    "num_local_experts": 0,
    "q_lora_rank": None,
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"), 0),
}
"""Numbers of what blocks may do without, and the value that leaves it out."""


def variants(config: PreTrainedConfig) -> Iterator[tuple[str, object]]:
    """The fields that may change how blocks are built, each with another value: flags, and what may be left out."""
    types = {each.name: str(each.type) for each in dataclasses.fields(config)}
    for name, value in config.to_dict().items():
        is_flag = isinstance(value, bool) or (value is None and "bool" in types.get(name, ""))
        if is_flag and name not in _IRRELEVANT.split() and not name.startswith("_"):
            yield name, not value
        elif value and name in WITHOUT:
            yield name, WITHOUT[name]
