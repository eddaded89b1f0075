"""Time and peak memory of each stage on a model of a given shape with random weights.

    python -m benchmarks.shape [--blocks 32 --width 4096 --inner 14336 --heads 32 --key-value-heads 8] [--samples 512
                               --length 1024] [--ratio 0.25] [--method least_squares] [--device cuda] [--json FILE]

The default is the shape of Llama 3 8B with a small vocabulary; the vocabulary does not matter, because no logits of
calibration tokens are computed. The resulting model is meaningless, but time and memory are those of a trained model of
that shape. The scratch directory (`TMPDIR`) needs space for the weights in bfloat16 twice.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers

VOCABULARY = 260
WORDS = 2_000


def make_model(directory: Path, options: argparse.Namespace) -> None:
    """Save a llama with random weights in bfloat16, and a tokenizer whose tokens are bytes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=options.width,
        intermediate_size=options.inner,
        num_hidden_layers=options.blocks,
        num_attention_heads=options.heads,
        num_key_value_heads=options.key_value_heads,
        vocab_size=VOCABULARY,
        max_position_embeddings=options.length,
        bos_token_id=None,
        eos_token_id=VOCABULARY - 1,
        dtype="bfloat16",
    )
    with torch.device(options.device or "cpu"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(directory)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(directory)


def make_text(file: Path, characters: int) -> None:
    """Write random words, at least as many `characters` of them; each character is one token."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(WORDS)]
    length = 0
    with file.open("w", encoding="utf-8") as lines:
        while length < characters:
            length += lines.write(" ".join(draw.choices(words, k=12)) + ".\n")


def compress(model: Path, text: Path, out: Path, options: argparse.Namespace) -> dict[str, object]:
    """Run `replaceme compress` and return its `replaceme.json`. Raises `CalledProcessError`."""
    command: list[str | Path] = [Path(sys.executable).with_name("replaceme"), "compress", model, "--out", out]
    command += ["--calibration", text, "--ratio", str(options.ratio), "--method", options.method, "--no-evaluate"]
    command += ["--self-generated", "0"]
    command += ["--samples", str(options.samples), "--max-length", str(options.length), "--json"]
    command += [] if options.device is None else ["--device", options.device]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    report: dict[str, object] = json.loads((out / "replaceme.json").read_text())
    return report


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=32)
    parser.add_argument("--width", type=int, default=4_096)
    parser.add_argument("--inner", type=int, default=14_336)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--key-value-heads", type=int, default=8)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--length", type=int, default=1_024)
    parser.add_argument("--ratio", type=float, default=0.25)
    parser.add_argument("--method", default="least_squares")
    parser.add_argument("--device", help="default: an accelerator if there is one")
    parser.add_argument("--json", type=Path, help="write the result to this file, too")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        model, text, out = (Path(scratch) / name for name in ("model", "text.txt", "out"))
        make_model(model, options)
        make_text(text, (options.samples + 1) * options.length)
        report = compress(model, text, out, options)
    stages, imported = report["stages"], int(str(report["imported_bytes"]))
    assert isinstance(stages, list)
    spec = report["spec"]
    assert isinstance(spec, dict)
    on_host = spec["compute"]["device"] == "cpu"  # on other devices the peak is that of device memory
    print(f"{spec['compute']['device']}, {spec['compute']['dtype']}, {options.samples} x {options.length} tokens\n")
    print("| stage | seconds | peak, MB |\n|---|---|---|")
    for stage in stages:
        peak = stage["peak_bytes"] - (imported if on_host else 0)
        print(f"| {stage['name']} | {stage['seconds']:.1f} | {peak / 1e6:.0f} |")
    if options.json:
        options.json.write_text(json.dumps({"compute": spec["compute"], "stages": stages}, indent=2) + "\n")


if __name__ == "__main__":
    main()
