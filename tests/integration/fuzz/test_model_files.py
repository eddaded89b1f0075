"""Random configs, tokenizers, cards, headers and indexes, through admission and loading: only errors of ours.

`REPLACEME_TEST_FUZZ_CASES` is how many cases the tests have together.
"""

import copy
import json
import os
import resource
import shutil
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replaceme_core.engine.model.lazy_model import load_lazily
from replaceme_core.engine.model.load import load_model, load_tokenizer, stored_weights
from replaceme_core.engine.text.tokens import encode
from replaceme_core.errors import ReplaceMeError
from replaceme_core.hub.data_files import choose_data_files, header_of
from replaceme_core.hub.model_config import read_outline
from replaceme_core.hub.port import RepositoryFile
from tests.fixtures.hostile.cards import FILES
from tests.fixtures.hostile.watch import nothing_escapes
from tests.fixtures.models.tiny import VARIANTS, save_tiny

CASES = int(os.environ.get("REPLACEME_TEST_FUZZ_CASES", "300"))
MEGABYTES = 500
SECONDS = 20
"""Of the clock for one case: the machine does other things too."""


def fuzzed(share: float) -> settings:
    """For a test with this share of all cases."""
    return settings(
        max_examples=max(10, round(CASES * share)),
        deadline=SECONDS * 1000,
        suppress_health_check=list(HealthCheck),
        derandomize="REPLACEME_TEST_FUZZ_CASES" not in os.environ,
        database=None,
    )


def peak_megabytes() -> float:
    """Of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, -1, 2, 3, 7, 255, 10**7, 2**31, 2**63, 2**70, -(2**63), 10**400]),
    st.sampled_from([0.0, -0.5, 0.5, 1e300, float("nan"), float("inf"), float("-inf")]),
    st.sampled_from(["", "x", "llama", "../../x", "/etc/passwd", "a\0b", "a" * 2000, "{{ 1 }}", "é中😀", "default"]),
    st.integers(),
    st.text(max_size=20),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def _places(tree: object, place: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    """The keys that lead to every value in a tree, at most ten of each list."""
    found = [place] if place else []
    if isinstance(tree, dict):
        for name, value in list(tree.items())[:60]:
            found += _places(value, (*place, name))
    elif isinstance(tree, list):
        for number, value in enumerate(tree[:10]):
            found += _places(value, (*place, number))
    return found


@st.composite
def mutated(draw: Callable[..., object], tree: object, values: st.SearchStrategy[object] = VALUES) -> object:
    """`tree` with one to three places changed: another value, gone, or moved to another name."""
    changed = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):  # type: ignore[call-overload]
        places = _places(changed)
        if not places:
            return draw(values)
        place = draw(st.sampled_from(places))
        assert isinstance(place, tuple)
        inside: object = changed
        for key in place[:-1]:
            inside = inside[key]  # type: ignore[index]
        match draw(st.sampled_from(["value", "value", "gone", "renamed"])):
            case "value":
                inside[place[-1]] = draw(values)  # type: ignore[index]
            case "gone":
                del inside[place[-1]]  # type: ignore[attr-defined]
            case "renamed" if isinstance(inside, dict):
                inside[draw(st.text(max_size=12))] = inside.pop(place[-1])
    return changed


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


def keys(*names: str) -> st.SearchStrategy[dict[str, object]]:
    """Up to two of these, which a sound file need not have."""
    return st.dictionaries(st.sampled_from(names), VALUES, max_size=2)


JSON_FILES = {
    "config.json": keys(
        *("rope_scaling", "rope_theta", "layer_types", "sliding_window", "tie_word_embeddings", "pruned_heads"),
        *("use_kernels", "experts_implementation", "_experts_implementation", "sub_configs", "to_dict", "id2label"),
        *("attribute_map", "num_labels", "problem_type", "tokenizer_class", "configuration_files", "_name_or_path"),
    ),
    "tokenizer.json": keys("normalizer"),
    "tokenizer_config.json": keys(
        *("tokenizer_file", "vocab_file", "merges_file", "gguf_file", "special_tokens_map_file", "auto_map"),
        *("added_tokens_decoder", "extra_special_tokens", "chat_template", "model_max_length", "tokenizer_class"),
        *("fast_tokenizer_files", "init_inputs", "bos_token", "image_token", "padding_side", "name_or_path"),
    ),
    "generation_config.json": keys(
        *("temperature", "do_sample", "watermarking_config", "to_dict", "stop_strings", "max_length")
    ),
}
TEXT = ["A line of text, and a number: 12.", "é中😀 \x00 <|end|>"]


@fuzzed(0.15)
@given(data=st.data(), family=st.sampled_from(NAMES), name=st.sampled_from(sorted(JSON_FILES)))
def test_json_files(models: dict[str, Path], data: st.DataObject, family: str, name: str) -> None:
    directory = models[family]
    path = directory / name
    sound = json.loads(path.with_suffix(".sound").read_text())
    path.write_text(json.dumps(data.draw(mutated({**sound, **data.draw(JSON_FILES[name])}))))
    try:
        read(directory)
        only_our_errors(directory, lambda: list(encode(TEXT, load_tokenizer(directory))))
    finally:
        path.write_bytes(path.with_suffix(".sound").read_bytes())


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


WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound model, whose sound weights are also in `sound`."""
    directory = save_tiny(tmp_path_factory.mktemp("fuzz") / "model")
    shutil.copyfile(directory / WEIGHTS, directory / "sound")
    load_model(directory, dtype=torch.float32, device="cpu")  # what the libraries need is in memory from here on
    return directory


def read(directory: Path) -> None:
    only_our_errors(
        directory,
        lambda: read_outline(directory),
        lambda: stored_weights(directory),
        lambda: load_lazily(directory, dtype=torch.float32, device="cpu"),
        lambda: load_model(directory, dtype=torch.float32, device="cpu"),
    )


NUMBERS = st.sampled_from([0, 4, 16, 260, 16640, 16704, -4, 2**63, 1.0, True]) | VALUES


@fuzzed(0.3)
@given(data=st.data())
def test_headers_that_were_changed(directory: Path, data: st.DataObject) -> None:
    raw = (directory / "sound").read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    text = json.dumps(data.draw(mutated(json.loads(raw[8 : 8 + length]), NUMBERS))).encode()
    (directory / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])
    read(directory)


@fuzzed(0.15)
@given(
    places=st.lists(st.tuples(st.integers(0, 9000), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4),
    cut=st.none() | st.integers(0, 120_000),
)
def test_bytes_that_were_changed(directory: Path, places: list[tuple[int, bytes]], cut: int | None) -> None:
    raw = bytearray((directory / "sound").read_bytes())
    for place, new in places:
        raw[place : place + len(new)] = new
    (directory / WEIGHTS).write_bytes(raw[:cut])
    read(directory)


FILE_NAMES = st.sampled_from([WEIGHTS, "sound", "../model/model.safetensors", "/etc/passwd", "a.safetensors", ".."])


@fuzzed(0.15)
@given(
    index=mutated({"metadata": {"total_size": 1}, "weight_map": {"a": WEIGHTS, "b": WEIGHTS}}, FILE_NAMES | VALUES)
    | st.dictionaries(st.text(max_size=8), FILE_NAMES | st.text(max_size=12), max_size=4).map(
        lambda m: {"weight_map": m}
    )
)
def test_indexes(directory: Path, index: object) -> None:
    shutil.copyfile(directory / "sound", directory / WEIGHTS)
    (directory / INDEX).write_text(json.dumps(index))
    try:
        read(directory)
    finally:
        (directory / INDEX).unlink()
