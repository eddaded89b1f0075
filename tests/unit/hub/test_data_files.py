"""Which files of a data set are fetched, on listings and cards as they are on the Hub, and on hostile ones."""

import time
import tracemalloc
from pathlib import Path

import pytest

from replaceme_core.errors import InvalidInput
from replaceme_core.hub.data_files import (
    BYTE_LIMIT,
    CARD_LIMIT,
    choose_data_files,
    header_of,
    local_data_files,
    read_card,
)
from replaceme_core.hub.port import RepositoryFile
from tests.fixtures.hostile.cards import CARDS, FILES

WIKITEXT_CARD = """---
license: cc-by-sa-3.0
configs:
- config_name: wikitext-2-raw-v1
  data_files:
  - split: train
    path: wikitext-2-raw-v1/train-*
  - split: validation
    path: wikitext-2-raw-v1/validation-*
- config_name: wikitext-103-raw-v1
  data_files:
  - split: train
    path: wikitext-103-raw-v1/train-*
---
# WikiText
"""
WIKITEXT = [
    "README.md",
    "wikitext-103-raw-v1/train-00000-of-00002.parquet",
    "wikitext-103-raw-v1/train-00001-of-00002.parquet",
    "wikitext-2-raw-v1/test-00000-of-00001.parquet",
    "wikitext-2-raw-v1/train-00000-of-00001.parquet",
    "wikitext-2-raw-v1/validation-00000-of-00001.parquet",
]
C4 = [
    f"{language}/c4-{split}.0000{n}-of-00002.json.gz"
    for language in ("en", "fr")
    for split in ("train", "validation")
    for n in (0, 1)
]


def listing(paths: list[str], *, size: int = 10) -> list[RepositoryFile]:
    return [RepositoryFile(path=path, size=size) for path in paths]


def choose(
    paths: list[str], *, config: str | None = None, split: str = "train", card: str | None = None
) -> tuple[str, ...]:
    return choose_data_files(listing(paths), config=config, split=split, card=card)


NO_MATCH = "---\nconfigs:\n- {data_files: data/train-*}\n---\n"
SCRIPT = ["load.py", "weights.bin", "dataset_infos.json", "LICENSE.txt"]


@pytest.mark.parametrize(
    ("paths", "options", "says", "field"),
    [
        (WIKITEXT, {"card": WIKITEXT_CARD}, "wikitext-103-raw-v1, wikitext-2-raw-v1", "config"),
        (
            WIKITEXT,
            {"config": "wikitext-2-raw-v1", "split": "test", "card": WIKITEXT_CARD},
            "there are train, validation",
            "split",
        ),
        (["other.csv"], {"card": NO_MATCH}, r"data/train-\*.*it has other\.csv", "split"),
        (["train.csv", "valid.csv"], {"split": "test"}, r"there are train, validation.*valid\.csv", "split"),
        (["train.csv", "valid.csv"], {"split": "nightly"}, r"there are train, validation.*valid\.csv", "split"),
        (C4, {"config": "de"}, "there are en, fr", "config"),
        ([], {}, "the data set has no ", "dataset"),
        (["README.md"], {}, "the data set has no ", "dataset"),
        (SCRIPT, {}, "the data set has no ", "dataset"),
    ],
)
def test_a_refusal_says_what_there_is(paths: list[str], options: dict[str, str], says: str, field: str) -> None:
    with pytest.raises(InvalidInput, match=says) as caught:
        choose(paths, **options)
    assert caught.value.field == f"calibration.{field}"


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("data_files: data/a.jsonl", ("data/a.jsonl",)),
        ("data_files: ['data/a.jsonl', 'b.jsonl']", ("b.jsonl", "data/a.jsonl")),
        ("data_files: [{split: train, path: ['*.jsonl']}]", ("b.jsonl",)),
        ("data_files: [{split: train, path: '**/*.jsonl'}]", ("b.jsonl", "data/a.jsonl", "data/deep/c.jsonl")),
        ("data_dir: data", ("data/a.jsonl", "data/deep/c.jsonl")),
        ("{data_dir: data, data_files: [{split: train, path: '?.jsonl'}]}", ("data/a.jsonl",)),
    ],
)
def test_the_forms_a_card_may_use(entry: str, expected: tuple[str, ...]) -> None:
    body = entry if entry.startswith("{") else f"{{{entry}}}"
    card = f"---\nconfigs:\n- {body}\n---\n"
    assert choose(["data/a.jsonl", "b.jsonl", "data/deep/c.jsonl"], card=card) == expected


@pytest.mark.parametrize(("split", "expected"), [("train", "en/train.jsonl"), ("validation", "en/dev.jsonl")])
def test_a_card_that_names_only_a_folder_leaves_the_splits_to_the_names(split: str, expected: str) -> None:
    """As `datasets` does. The name of the folder itself says nothing."""
    card = "---\nconfigs:\n- {config_name: english, data_dir: en}\n- {config_name: test, data_dir: ./test/}\n---\n"
    paths = ["en/train.jsonl", "en/dev.jsonl", "fr/train.jsonl", "test/a.jsonl"]
    assert choose(paths, config="english", split=split, card=card) == (expected,)
    assert choose(paths, config="test", card=card) == ("test/a.jsonl",)
    with pytest.raises(InvalidInput, match="there are train, validation"):
        choose(paths, config="english", split="test", card=card)


def test_a_card_that_is_too_large_decides_nothing(tmp_path: Path) -> None:
    """Neither at submission, where it is not downloaded, nor in a runner."""
    card = "---\nconfigs:\n- {data_files: b.jsonl}\n---\n" + "x" * CARD_LIMIT
    for name, text in (("README.md", card), ("a.jsonl", "1"), ("b.jsonl", "2")):
        (tmp_path / name).write_text(text)
    files = [RepositoryFile(path=path.name, size=path.stat().st_size) for path in tmp_path.iterdir()]
    chosen = choose_data_files(files, config=None, split="train")
    assert chosen == ("a.jsonl", "b.jsonl")
    assert local_data_files(tmp_path, config=None, split="train") == tuple(tmp_path / name for name in chosen)


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("data/train-*", "data/train-0.csv", True),
        ("data/train-*", "data/train-0/x.csv", False),
        ("**/*.csv", "x.csv", True),
        ("**/*.csv", "a/b/x.csv", True),
        ("**/a/**/b.csv", "a/a/c/b.csv", True),
        ("**/a/b/*.csv", "a/b/a/b/x.csv", True),
        ("**/a/b/*.csv", "a/b/a/x.csv", False),
        ("data/**", "data/a/b.csv", True),
        ("data", "data/b.csv", False),
        ("a*a.csv", "a.csv", False),
        ("[0-9][!0-9].csv", "0a.csv", True),
        ("[0-9][!0-9].csv", "00.csv", False),
        ("?.csv", "ab.csv", False),
        ("a.b.csv", "axb.csv", False),
    ],
)
def test_patterns(pattern: str, name: str, expected: bool) -> None:
    card = f"---\nconfigs:\n- {{data_files: ['{pattern}', other.csv]}}\n---\n"
    assert (name in choose([name, "other.csv"], card=card)) is expected


@pytest.mark.parametrize(
    ("pattern", "problem"), [("data/**.csv", "whole folders only"), ("*a" * 1000, "too many or too long")]
)
def test_patterns_that_are_refused(pattern: str, problem: str) -> None:
    names = [f"{'a' * 1000}{number}.csv" for number in range(200)]
    with pytest.raises(InvalidInput, match=problem) as caught:
        choose(names, card=f"---\nconfigs:\n- {{data_files: '{pattern}'}}\n---\n")
    assert caught.value.field == "calibration.dataset"


@pytest.mark.parametrize(
    "card",
    ["", "no header", "---\n{{\n---\n", "---\nconfigs: 3\n---\n", "---\n- 1\n---\n", "---\n" + "[" * 2000 + "\n---\n"],
)
def test_an_unusable_card_is_no_card(card: str) -> None:
    assert choose(["train.txt", "test.txt"], card=card) == ("train.txt",)


TWO_CONFIGS = (
    "---\nconfigs:\n- {config_name: fr, data_files: fr.csv}\n"
    "- {config_name: en, data_files: en.csv, default: true}\n---\n"
)
WIKITEXT_2 = ("wikitext-2-raw-v1/train-00000-of-00001.parquet", "README.md")


@pytest.mark.parametrize(
    ("paths", "options", "expected"),
    [
        (WIKITEXT, {"config": "wikitext-2-raw-v1", "card": WIKITEXT_CARD}, WIKITEXT_2),
        (["en.csv", "fr.csv"], {"card": TWO_CONFIGS}, ("en.csv",)),
        (["en.csv", "fr.csv"], {"card": TWO_CONFIGS, "config": "en"}, ("en.csv",)),
        (["en.csv", "fr.csv"], {"card": TWO_CONFIGS, "config": "fr"}, ("fr.csv",)),
        # without a card names and folders decide
        (C4, {"config": "en"}, ("en/c4-train.00000-of-00002.json.gz", "en/c4-train.00001-of-00002.json.gz")),
        (["a.txt", "b.txt"], {}, ("a.txt", "b.txt")),
        (["dev.jsonl", "train.jsonl"], {"split": "validation"}, ("dev.jsonl",)),
        (["test/train-0.csv", "test/test-0.csv"], {}, ("test/train-0.csv",)),
        (["train/a.txt", "contest/b.txt"], {}, ("train/a.txt",)),
        (["test1.csv", "train1.csv", "train2.csv"], {}, ("train1.csv", "train2.csv")),
        (["train_sft-0.parquet", "train_gen-0.parquet"], {"split": "train_sft"}, ("train_sft-0.parquet",)),
        # one format is taken
        (["train.csv", "train.jsonl", "train.parquet", "train.txt"], {}, ("train.parquet",)),
        (["train.csv", "train.jsonl"], {}, ("train.jsonl",)),
    ],
)
def test_which_files_are_chosen(paths: list[str], options: dict[str, str], expected: tuple[str, ...]) -> None:
    assert choose(paths, **options) == expected


def test_the_cap_takes_files_in_order_and_at_least_one() -> None:
    for size, count in ((BYTE_LIMIT // 5 * 2, 2), (BYTE_LIMIT + 1, 1)):
        files = listing([f"train-{n}.parquet" for n in range(5)], size=size)
        assert choose_data_files(files, config=None, split="train") == tuple(file.path for file in files[:count])


def test_the_same_choice_on_a_downloaded_snapshot(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs/1").write_text("text")
    snapshot = tmp_path / "snapshot"
    for path in WIKITEXT[1:]:
        (snapshot / path).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / path).symlink_to(tmp_path / "blobs/1")
    (snapshot / "README.md").write_text(WIKITEXT_CARD)
    chosen = local_data_files(snapshot, config="wikitext-2-raw-v1", split="validation")
    assert chosen == (snapshot / "wikitext-2-raw-v1/validation-00000-of-00001.parquet",)


def test_a_file_that_is_too_large_is_refused() -> None:
    with pytest.raises(InvalidInput, match="in smaller files"):
        choose_data_files(listing(["train.jsonl"], size=2**33 + 1), config=None, split="train")
    assert choose_data_files(listing(["train.jsonl"], size=2**33), config=None, split="train")


SECONDS, BYTES = 0.2, 50 * 2**20
REFUSED = {
    "aliases": "anchors, aliases or tags",
    "merged aliases": "anchors, aliases or tags",
    "tag": "anchors, aliases or tags",
    "empty lines and spaces": "longer than 32,768 bytes",
    "closed empty lines": "longer than 1,000 lines",
    "a plain list": "longer than 32,768 bytes",
    "a list in a line": "more than 6,000 names and values",
    "deep dashes": "nested more than 32 deep",
    "deep lines": "nested more than 32 deep",
}


def refusal_of(readme: Path) -> InvalidInput | None:
    files = [RepositoryFile(path=path, size=10) for path in FILES]
    try:
        choose_data_files(files, config=None, split="train", card=read_card(readme))
    except InvalidInput as error:
        return error
    return None


@pytest.mark.parametrize("name", CARDS)
def test_an_attack_takes_little_time_and_memory(name: str, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(CARDS[name])
    spent = []
    for _ in range(3):  # the machine may be busy for a moment
        start = time.process_time()
        refused = refusal_of(readme)
        spent.append(time.process_time() - start)
        if spent[-1] < SECONDS:
            break
    assert min(spent) < SECONDS
    tracemalloc.start()
    try:
        refusal_of(readme)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < BYTES
    if name in REFUSED:
        assert refused is not None
        assert (refused.field, REFUSED[name] in refused.message) == ("calibration.dataset", True)
    assert len(str(refused)) < 2_000


def test_all_values_are_text() -> None:
    card = "---\nn: 2024\non: yes\nnone: null\nempty:\nquoted: 'null'\nlist: [1.0, {a: ~}]\n---\n"
    assert header_of(card) == {
        "n": "2024",
        "on": "yes",
        "none": "",
        "empty": "",
        "quoted": "null",
        "list": ["1.0", {"a": ""}],
    }


def test_a_long_card_is_read_to_the_end_of_its_header_only(tmp_path: Path) -> None:
    with (tmp_path / "README.md").open("wb") as file:
        file.write(b"---\r\na: b\r\n---\r\n")
        file.truncate(10**12)
    assert header_of(read_card(tmp_path / "README.md")) == {"a": "b"}


def test_a_card_of_a_hundred_configs_is_read() -> None:
    """As large data sets have them: a config for each language or crawl."""
    entries = "".join(
        f"- config_name: CC-MAIN-{number}\n  data_files:\n  - split: train\n    path: data/CC-MAIN-{number}/*\n"
        for number in range(200)
    )
    files = [
        RepositoryFile(path=f"data/CC-MAIN-{number}/{part:03}.parquet", size=10)
        for number in range(100)
        for part in range(250)
    ]
    card = f"---\nlicense: odc-by\nconfigs:\n{entries}---\n"
    chosen = choose_data_files(files, config="CC-MAIN-77", split="train", card=card)
    assert len(chosen) == 250
    assert chosen[0] == "data/CC-MAIN-77/000.parquet"
