"""Cards of data sets that strangers wrote: each is read or refused in little time and memory."""

import time
import tracemalloc
from contextlib import suppress
from pathlib import Path

import pytest

from replaceme_core.errors import InvalidInput
from replaceme_core.hub.data_files import choose_data_files, header_of, read_card
from replaceme_core.hub.port import RepositoryFile
from tests.fixtures.hostile.cards import CARDS, FILES

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


def choose(readme: Path) -> None:
    files = [RepositoryFile(path=path, size=10) for path in FILES]
    choose_data_files(files, config=None, split="train", card=read_card(readme))


@pytest.mark.parametrize("name", CARDS)
def test_an_attack_takes_little_time_and_memory(name: str, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(CARDS[name])
    spent = []
    for _ in range(3):  # the machine may be busy for a moment
        start = time.process_time()
        with suppress(InvalidInput):
            choose(readme)
        spent.append(time.process_time() - start)
    assert min(spent) < SECONDS
    tracemalloc.start()
    try:
        with suppress(InvalidInput):
            choose(readme)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < BYTES


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_read_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(CARDS[name])
    with pytest.raises(InvalidInput, match=REFUSED[name]) as caught:
        choose(tmp_path / "README.md")
    assert caught.value.field == "calibration.dataset"
    assert len(caught.value.message) < 2_000


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


@pytest.mark.parametrize(
    "card",
    ["", "---", "--\n", "---\nconfigs: [\n---\n", "---\n[a]: b\n---\n", "---\n- a\n---\n", "---\na: \x01\n---\n"],
)
def test_what_is_no_header(card: str) -> None:
    assert header_of(card) == {}


def test_only_the_first_document_counts() -> None:
    assert header_of("---\na: b\n...\nc: d\n---\ne: f\n---\n") == {"a": "b"}


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
