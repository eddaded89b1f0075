"""Random configs, tokenizers, generation configs and cards, through admission and loading: only errors of ours."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from replaceme_core.engine.model.lazy_model import load_lazily
from replaceme_core.engine.model.load import load_model, load_tokenizer, stored_weights
from replaceme_core.engine.text.tokens import encode
from replaceme_core.errors import ReplaceMeError
from replaceme_core.hub.data_files import choose_data_files, header_of
from replaceme_core.hub.model_config import read_outline
from replaceme_core.hub.port import RepositoryFile
from tests.fixtures.hostile.cards import FILES
from tests.fixtures.hostile.fuzzing import MEGABYTES, fuzzed, peak_megabytes
from tests.fixtures.hostile.mutation import VALUES, mutated
from tests.fixtures.hostile.watch import nothing_escapes
from tests.fixtures.models.tiny import VARIANTS, save_tiny

NAMES = ("llama", "mistral-sliding", "qwen2-sliding", "phi3-sliding", "gemma3", "gpt2", "falcon-40b", "opt", "mixtral")
FAMILIES = tuple(variant for variant in VARIANTS if variant.name in NAMES)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Sound models by family, whose JSON files are also in files that end in .sound."""
    root, found = tmp_path_factory.mktemp("fuzz"), {}
    for variant in FAMILIES:
        found[variant.name] = directory = save_tiny(root / variant.name, variant=variant)
        for path in list(directory.glob("*.json")):
            path.with_suffix(".sound").write_bytes(path.read_bytes())
        load_model(directory, dtype=torch.float32, device="cpu")
    return found


def only_our_errors(directory: Path, *steps: Callable[[], object]) -> None:
    before = peak_megabytes()
    with nothing_escapes(directory), suppress(ReplaceMeError):
        for step in steps:
            step()
    assert peak_megabytes() - before < MEGABYTES


def changed(directory: Path, name: str, data: st.DataObject, more: dict[str, object]) -> None:
    """Write the file `name` with a few changes."""
    sound = json.loads((directory / name).with_suffix(".sound").read_text())
    extra = data.draw(st.dictionaries(st.sampled_from(sorted(more)), VALUES, max_size=2))
    (directory / name).write_text(json.dumps(data.draw(mutated({**sound, **extra}))))


def restore(directory: Path, name: str) -> None:
    (directory / name).write_bytes((directory / name).with_suffix(".sound").read_bytes())


KEYS = dict.fromkeys(
    (
        *("rope_scaling", "rope_theta", "layer_types", "sliding_window", "tie_word_embeddings", "pruned_heads"),
        *("use_kernels", "experts_implementation", "_experts_implementation", "sub_configs", "to_dict", "id2label"),
        *("attribute_map", "num_labels", "problem_type", "tokenizer_class", "configuration_files", "_name_or_path"),
    )
)


@fuzzed(0.12)
@given(data=st.data(), name=st.sampled_from(NAMES))
def test_configs(models: dict[str, Path], data: st.DataObject, name: str) -> None:
    directory = models[name]
    changed(directory, "config.json", data, KEYS)
    only_our_errors(
        directory,
        lambda: read_outline(directory),
        lambda: stored_weights(directory),
        lambda: load_lazily(directory, dtype=torch.float32, device="cpu"),
        lambda: load_model(directory, dtype=torch.float32, device="cpu"),
        lambda: load_tokenizer(directory),
    )


TOKENIZER_KEYS = dict.fromkeys(
    (
        *("tokenizer_file", "vocab_file", "merges_file", "gguf_file", "special_tokens_map_file", "auto_map"),
        *("added_tokens_decoder", "extra_special_tokens", "chat_template", "model_max_length", "tokenizer_class"),
        *("fast_tokenizer_files", "init_inputs", "bos_token", "image_token", "padding_side", "name_or_path"),
    )
)
TEXT = ["A line of text, and a number: 12.", "é中😀 \x00 <|end|>"]


@fuzzed(0.1)
@given(data=st.data(), name=st.sampled_from(["tokenizer.json", "tokenizer_config.json"]))
def test_tokenizers(models: dict[str, Path], data: st.DataObject, name: str) -> None:
    directory = models["llama"]
    restore(directory, "config.json")
    changed(directory, name, data, TOKENIZER_KEYS if name == "tokenizer_config.json" else {"normalizer": None})
    try:
        only_our_errors(directory, lambda: list(encode(TEXT, load_tokenizer(directory))))
    finally:
        restore(directory, name)


@fuzzed(0.03)
@given(data=st.data())
def test_generation_configs(models: dict[str, Path], data: st.DataObject) -> None:
    directory = models["llama"]
    restore(directory, "config.json")
    changed(
        directory,
        "generation_config.json",
        data,
        dict.fromkeys(("temperature", "do_sample", "watermarking_config", "to_dict", "stop_strings", "max_length")),
    )
    only_our_errors(directory, lambda: load_lazily(directory, dtype=torch.float32, device="cpu"))


LINES = st.sampled_from(
    [
        *("---", "configs:", "- config_name: default", "  data_files:", "  - split: train", '    path: "*"', "  - x"),
        *("? a", ": b", "- - -", "a: &a b", "b: *a", "!!x y", "a: |", "  text", "# c", "...", "%YAML 1.1", "{[", "}]"),
        *("configs: [{data_files: '**/*.jsonl'}]", "configs: [{data_files: {train: x}}]", "\ufeff", "\x00", "\t"),
    ]
) | st.text(max_size=30)
PLACES = st.text(alphabet="*?[]!-/ab.{}\\jsonl", max_size=60)


@fuzzed(0.1)
@given(lines=st.lists(LINES, max_size=20))
def test_headers_of_cards(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    text = "\n".join(["---", *lines, "---", ""])
    only_our_errors(
        Path(tmp_path_factory.getbasetemp()), lambda: header_of(text), lambda: choose(text), lambda: choose(text, "x")
    )


@fuzzed(0.05)
@given(patterns=st.lists(PLACES, min_size=1, max_size=20))
def test_patterns_of_cards(tmp_path_factory: pytest.TempPathFactory, patterns: list[str]) -> None:
    text = f"---\nconfigs: [{{data_files: {json.dumps(patterns)}}}]\n---\n"
    only_our_errors(Path(tmp_path_factory.getbasetemp()), lambda: choose(text))


def choose(card: str, config: str | None = None) -> object:
    files = [RepositoryFile(path=path, size=10) for path in FILES]
    return choose_data_files(files, config=config, split="train", card=card)
