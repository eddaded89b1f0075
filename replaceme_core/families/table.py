"""One row per family, and the reason for each type that is refused. A new family is one row and one tiny test config.

`resolve.py` checks each row on the live model before any work is done. Unknown types are refused, never guessed.
Knows the standard library only.
"""

import json
from collections.abc import Mapping
from dataclasses import replace

from replaceme_core.families.layout import Fold, FoldKind, Layout, Period, Refusal, Requirement
from replaceme_core.wording import shorten

_HYBRID = (
    "it mixes attention with recurrent or convolutional blocks (state space, linear attention), whose writes to the "
    "stream are not known here; use a model of attention blocks alone"
)
_RECURRENT = (
    "it has no attention, so its blocks do not write to the stream as attention and MLP do; use a model of "
    "attention blocks"
)
_ENCODER_DECODER = (
    "it is an encoder-decoder, in which a cut would have to serve two stacks and their cross attention; use a "
    "decoder-only language model"
)
_ENCODER = "it is an encoder, not a causal language model; use a decoder-only language model"
_WRAPPER = (
    "it wraps a language model together with a vision or audio tower; save its language model alone and compress that"
)
_SHARED_BLOCKS = (
    "it has blocks that share caches, weights or inputs with other blocks, so a block cannot go by itself; use a "
    "model whose blocks are independent"
)

_REASONS = {
    _HYBRID: """
        bamba falcon_h1 granitemoehybrid jamba kimi_linear lfm2 lfm2_moe minimax nemotron_h olmo_hybrid
        qwen3_5_moe_text qwen3_5_text qwen3_next recurrent_gemma zamba zamba2
    """,
    _RECURRENT: "falcon_mamba mamba mamba2 rwkv xlstm",
    _ENCODER_DECODER: """
        bart bigbird_pegasus blenderbot blenderbot-small encoder-decoder fsmt led longt5 m2m_100 marian
        mbart mt5 mvp nllb-moe pegasus pegasus_x plbart prophetnet switch_transformers t5 t5gemma t5gemma2
        umt5 whisper
    """,
    _ENCODER: """
        albert bert camembert deberta deberta-v2 distilbert electra eurobert longformer modernbert mpnet
        roberta xlm-roberta
    """,
    _WRAPPER: """
        aria aya_vision blip-2 chameleon cohere2_vision emu3 fuyu gemma3 gemma4 glm4v glm4v_moe
        granite_speech idefics2 idefics3 instructblip internvl janus kosmos-2 lfm2_vl llama4 llava
        llava_next llava_next_video llava_onevision mistral3 mllama paligemma phi4_multimodal pixtral
        qwen2_5_omni qwen2_5_vl qwen2_audio qwen2_vl qwen3_5 qwen3_5_moe qwen3_omni_moe qwen3_vl
        qwen3_vl_moe smolvlm video_llava vipllava voxtral
    """,
    _SHARED_BLOCKS: "gemma3n gemma3n_text gemma4_text",
}
"""The types that are refused for each reason."""

REFUSALS: dict[str, Refusal] = {
    name: Refusal(model_type=name, reason=f"model type {name!r} is not supported: {reason}")
    for reason, names in _REASONS.items()
    for name in names.split()
}


_CAUSAL = Requirement(
    field="use_bidirectional_attention",
    allowed=(None, False),
    reason="it attends in both directions, so it is an encoder; causal language models are supported",
)

_QKV = ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight")
_GATED = ("mlp.gate_proj.weight", "mlp.up_proj.weight")

_LLAMA = Layout(
    model_type="llama",
    blocks="model.layers",
    attention_write="self_attn.o_proj",
    mlp_write="mlp.down_proj",
    folds=((Fold(path="mlp.down_proj"),),),
    attention_reads=_QKV,
    mlp_reads=(_GATED,),
    final_norm=Fold(path="model.norm", kind=FoldKind.NORM),
)

_GEMMA_NORM = Fold(path="model.norm", kind=FoldKind.NORM_PLUS_ONE)

_GEMMA2 = Layout(
    model_type="gemma2",
    blocks="model.layers",
    attention_write="post_attention_layernorm",
    mlp_write="post_feedforward_layernorm",
    folds=((Fold(path="post_feedforward_layernorm", kind=FoldKind.NORM_PLUS_ONE),),),
    attention_reads=_QKV,
    mlp_reads=(_GATED,),
    normed_writes=("self_attn.o_proj", "mlp.down_proj"),
    final_norm=_GEMMA_NORM,
    per_layer_lists=("layer_types",),
    neighbours_differ=True,
    requires=(_CAUSAL,),
)

_GPT2 = Layout(
    model_type="gpt2",
    learned_positions=True,
    blocks="transformer.h",
    attention_write="attn.c_proj",
    mlp_write="mlp.c_proj",
    folds=((Fold(path="mlp.c_proj", kind=FoldKind.CONV1D),),),
    attention_reads=("attn.c_attn.weight",),
    mlp_reads=(("mlp.c_fc.weight",),),
    final_norm=Fold(path="transformer.ln_f", kind=FoldKind.NORM),
    block_count="n_layer",
    width="n_embd",
    requires=(
        Requirement(
            field="scale_attn_by_inverse_layer_idx",
            allowed=(False,),
            reason="its attention is scaled by the index of the block, which no config can pin once blocks are removed",
        ),
        Requirement(
            field="add_cross_attention", allowed=(False,), reason="cross attention is a third write to the stream"
        ),
    ),
)

_GPT_NEOX = Layout(
    model_type="gpt_neox",
    blocks="gpt_neox.layers",
    attention_write="attention.dense",
    mlp_write="mlp.dense_4h_to_h",
    folds=((Fold(path="mlp.dense_4h_to_h"),),),
    attention_reads=("attention.query_key_value.weight",),
    mlp_reads=(("mlp.dense_h_to_4h.weight",),),
    final_norm=Fold(path="gpt_neox.final_layer_norm", kind=FoldKind.NORM),
)

_FALCON = Layout(
    model_type="falcon",
    blocks="transformer.h",
    attention_write="self_attention.dense",
    mlp_write="mlp.dense_4h_to_h",
    folds=((Fold(path="mlp.dense_4h_to_h"),),),
    attention_reads=("self_attention.query_key_value.weight",),
    mlp_reads=(("mlp.dense_h_to_4h.weight",),),
    final_norm=Fold(path="transformer.ln_f", kind=FoldKind.NORM),
    added_in_place=True,
    block_returns_tuple=True,
)

_PHI = Layout(
    model_type="phi",
    blocks="model.layers",
    attention_write="self_attn.dense",
    mlp_write="mlp.fc2",
    folds=((Fold(path="mlp.fc2"),),),
    attention_reads=_QKV,
    mlp_reads=(("mlp.fc1.weight",),),
    final_norm=Fold(path="model.final_layernorm", kind=FoldKind.NORM),
)

_OPT = Layout(
    model_type="opt",
    learned_positions=True,
    blocks="model.decoder.layers",
    attention_write="self_attn.out_proj",
    mlp_write="fc2",
    folds=((Fold(path="fc2"),),),
    attention_reads=_QKV,
    mlp_reads=(("fc1.weight",),),
    final_norm=Fold(path="model.decoder.final_layer_norm", kind=FoldKind.NORM),
    requires=(
        Requirement(
            field="do_layer_norm_before",
            allowed=(True,),
            reason="its norms come after the sums (as in opt-350m), so its stream is not a sum of writes",
        ),
    ),
)

_EXPERTS = Fold(path="mlp.experts.down_proj", kind=FoldKind.EXPERTS)

_ROUTED = ("mlp.experts.gate_up_proj", "mlp.gate.weight")

_SHARED = (
    "mlp.shared_expert.gate_proj.weight",
    "mlp.shared_expert.up_proj.weight",
    "mlp.shared_expert_gate.weight",
)

_MIXTRAL = Layout(
    model_type="mixtral",
    blocks="model.layers",
    attention_write="self_attn.o_proj",
    mlp_write="mlp",
    folds=((_EXPERTS,),),
    attention_reads=_QKV,
    mlp_reads=(_ROUTED,),
    final_norm=Fold(path="model.norm", kind=FoldKind.NORM),
    switched_off=("output_router_logits",),
)

_QWEN3_MOE = replace(
    _MIXTRAL,
    model_type="qwen3_moe",
    folds=((_EXPERTS,), (Fold(path="mlp.down_proj"),)),
    mlp_reads=(_ROUTED, _GATED),
    periods=(Period(step="decoder_sparse_step", exceptions="mlp_only_layers"),),
    index_lists=("mlp_only_layers",),
)

FAMILIES: dict[str, Layout] = {
    row.model_type: row
    for row in (
        _LLAMA,
        replace(_LLAMA, model_type="mistral", per_layer_lists=("layer_types",)),
        replace(_LLAMA, model_type="qwen2", per_layer_lists=("layer_types",), thresholds=("max_window_layers",)),
        replace(_LLAMA, model_type="qwen3", per_layer_lists=("layer_types",), thresholds=("max_window_layers",)),
        replace(
            _LLAMA,
            model_type="phi3",
            attention_reads=("self_attn.qkv_proj.weight",),
            mlp_reads=(("mlp.gate_up_proj.weight",),),
        ),
        replace(_LLAMA, model_type="granite", residual_multiplier="residual_multiplier"),
        replace(
            _LLAMA,
            model_type="smollm3",
            per_layer_lists=("no_rope_layers", "layer_types"),
            steps=("no_rope_layer_interval",),
        ),
        replace(_LLAMA, model_type="gemma", final_norm=_GEMMA_NORM, requires=(_CAUSAL,)),
        _GEMMA2,
        replace(
            _GEMMA2,
            model_type="gemma3_text",
            neighbours_differ=False,
            steps=("sliding_window_pattern", "_sliding_window_pattern"),
        ),
        replace(
            _GEMMA2,
            model_type="olmo2",
            folds=((Fold(path="post_feedforward_layernorm", kind=FoldKind.NORM),),),
            final_norm=_LLAMA.final_norm,
            per_layer_lists=(),
            neighbours_differ=False,
            requires=(),
        ),
        _GPT2,
        _GPT_NEOX,
        _FALCON,
        _PHI,
        _OPT,
        _MIXTRAL,
        _QWEN3_MOE,
        replace(
            _QWEN3_MOE,
            model_type="qwen2_moe",
            folds=((_EXPERTS, Fold(path="mlp.shared_expert.down_proj")), (Fold(path="mlp.down_proj"),)),
            mlp_reads=((*_ROUTED, *_SHARED), _GATED),
            per_layer_lists=("layer_types",),
            thresholds=("max_window_layers",),
        ),
    )
}


def lookup(model_type: str) -> Layout | Refusal:
    """The row of `model_type`, or why there is none."""
    row = FAMILIES.get(model_type) or REFUSALS.get(model_type)
    if row is not None:
        return row
    supported = ", ".join(sorted(FAMILIES))
    shown = shorten(model_type, 80)
    return Refusal(model_type=model_type, reason=f"model type {shown!r} is not supported; supported: {supported}")


def unmet(row: Layout, config: Mapping[str, object]) -> Refusal | None:
    """The reason why a model of this row's type with this `config` is refused; `None` if it is not."""
    for one in row.requires:
        if one.field in config and config[one.field] not in one.allowed:
            value = config[one.field]
            reason = f"this {row.model_type} model sets {one.field} to {shorten(repr(value), 80)}: {one.reason}"
            return Refusal(model_type=row.model_type, reason=reason)
    return None


def limits(row: Layout) -> str | None:
    """A sentence that says which models of a supported type are refused; `None` if none are."""
    parts = (f"not with {one.field} other than {json.dumps(one.allowed[-1])}: {one.reason}" for one in row.requires)
    return "; ".join(parts) or None
