"""One literal row per family. A new family is one row here and one tiny config in the tests.

Nothing here is taken on trust: `resolve.py` checks each row on the live model before any work is done. Unknown types
are refused, never guessed. Knows the standard library only.
"""

from dataclasses import replace

from replaceme_core.families.layout import Layout, Refusal

_LLAMA = Layout(
    model_type="llama",
    blocks="model.layers",
    attention_write="self_attn.o_proj",
    mlp_write="mlp.down_proj",
    fold="mlp.down_proj",
    per_layer_lists=(),
)

FAMILIES: dict[str, Layout] = {
    row.model_type: row
    for row in (
        _LLAMA,
        replace(_LLAMA, model_type="mistral", per_layer_lists=("layer_types",)),
        replace(_LLAMA, model_type="qwen2", per_layer_lists=("layer_types",)),
        replace(_LLAMA, model_type="qwen3", per_layer_lists=("layer_types",)),
    )
}


def lookup(model_type: str) -> Layout | Refusal:
    """The row of `model_type`, or why there is none."""
    row = FAMILIES.get(model_type)
    if row is not None:
        return row
    supported = ", ".join(sorted(FAMILIES))
    return Refusal(model_type=model_type, reason=f"model type {model_type!r} is not supported; supported: {supported}")
