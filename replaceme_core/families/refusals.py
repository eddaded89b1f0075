"""Model types that are not supported, each with its reason. Knows the standard library only.

A type that is in neither table is refused as well; this table gives the reasons for types that users may try.
"""

from replaceme_core.families.layout import Refusal

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
_SHARED = (
    "it has blocks that share caches, weights or inputs with other blocks, so a block cannot go by itself; use a "
    "model whose blocks are independent"
)

_REASONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        _HYBRID,
        (
            "bamba",
            "falcon_h1",
            "granitemoehybrid",
            "jamba",
            "kimi_linear",
            "lfm2",
            "lfm2_moe",
            "minimax",
            "nemotron_h",
            "olmo_hybrid",
            "qwen3_5_moe_text",
            "qwen3_5_text",
            "qwen3_next",
            "recurrent_gemma",
            "zamba",
            "zamba2",
        ),
    ),
    (_RECURRENT, ("falcon_mamba", "mamba", "mamba2", "rwkv", "xlstm")),
    (
        _ENCODER_DECODER,
        (
            "bart",
            "bigbird_pegasus",
            "blenderbot",
            "blenderbot-small",
            "encoder-decoder",
            "fsmt",
            "led",
            "longt5",
            "m2m_100",
            "marian",
            "mbart",
            "mt5",
            "mvp",
            "nllb-moe",
            "pegasus",
            "pegasus_x",
            "plbart",
            "prophetnet",
            "switch_transformers",
            "t5",
            "t5gemma",
            "t5gemma2",
            "umt5",
            "whisper",
        ),
    ),
    (
        _ENCODER,
        (
            "albert",
            "bert",
            "camembert",
            "deberta",
            "deberta-v2",
            "distilbert",
            "electra",
            "eurobert",
            "longformer",
            "modernbert",
            "mpnet",
            "roberta",
            "xlm-roberta",
        ),
    ),
    (
        _WRAPPER,
        (
            "aria",
            "aya_vision",
            "blip-2",
            "chameleon",
            "cohere2_vision",
            "emu3",
            "fuyu",
            "gemma3",
            "gemma4",
            "glm4v",
            "glm4v_moe",
            "granite_speech",
            "idefics2",
            "idefics3",
            "instructblip",
            "internvl",
            "janus",
            "kosmos-2",
            "lfm2_vl",
            "llama4",
            "llava",
            "llava_next",
            "llava_next_video",
            "llava_onevision",
            "mistral3",
            "mllama",
            "paligemma",
            "phi4_multimodal",
            "pixtral",
            "qwen2_5_omni",
            "qwen2_5_vl",
            "qwen2_audio",
            "qwen2_vl",
            "qwen3_5",
            "qwen3_5_moe",
            "qwen3_omni_moe",
            "qwen3_vl",
            "qwen3_vl_moe",
            "smolvlm",
            "video_llava",
            "vipllava",
            "voxtral",
        ),
    ),
    (_SHARED, ("gemma3n", "gemma3n_text", "gemma4_text")),
)

REFUSALS: dict[str, Refusal] = {
    name: Refusal(model_type=name, reason=f"model type {name!r} is not supported: {reason}")
    for reason, names in _REASONS
    for name in names
}
