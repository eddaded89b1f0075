"""Files of data sets, as strangers write them. What crashed a native reader is refused by name, in little memory."""

import gzip
import json
import resource
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from replaceme_core.engine.text import rows
from replaceme_core.engine.text.rows import rows_of
from replaceme_core.errors import InvalidInput

COLUMNS = ("text", "messages")
TURNS = [{"role": "user", "content": "hi"}]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def read(path: Path) -> list[object]:
    return [dict(row) for row in rows_of(path, COLUMNS)]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.jsonl", '\ufeff{"text": "a"}\n\n{"text": "b"}', [{"text": "a"}, {"text": "b"}]),
        ("a.json", '{"text": "a"}\n{"text": "b"}\n', [{"text": "a"}, {"text": "b"}]),
        ("a.json", '\n[{"text": "a"},\n {"text":\n "b, ]"}]\n', [{"text": "a"}, {"text": "b, ]"}]),
        ("a.json", "[]", []),
        ("a.csv", 'id,text\n1,"two\nlines"\n2,x\n', [{"id": "1", "text": "two\nlines"}, {"id": "2", "text": "x"}]),
        ("a.txt", "a\n\nb", [{"text": "a"}, {"text": ""}, {"text": "b"}]),
    ],
)
def test_each_format(tmp_path: Path, name: str, text: str, expected: list[object]) -> None:
    assert read(write(tmp_path / name, text)) == expected


def test_a_packed_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n'))
    assert read(tmp_path / "a.jsonl.gz") == [{"text": "a"}]


def test_of_parquet_only_the_wanted_columns_have_values(tmp_path: Path) -> None:
    table = pyarrow.table({"text": ["a", None], "messages": [TURNS, TURNS], "image": [b"x", b"y"]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == [
        {"text": "a", "messages": TURNS, "image": None},
        {"text": None, "messages": TURNS, "image": None},
    ]


def test_a_reader_of_parquet_ends_when_enough_is_read(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": ["some text"] * 100_000}), tmp_path / "a.parquet")
    found = rows_of(tmp_path / "a.parquet", COLUMNS)
    assert isinstance(found, Iterator)
    assert next(found)["text"] == "some text"
    found.close()  # type: ignore[attr-defined]  # of a generator; a reader that stayed would be a warning, an error here


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.jsonl", "null\n" * 3, "line 1 of a.jsonl is not a JSON object but null"),
        ("a.json", "null\n" * 3, "line 1 of a.json is not a JSON object but null"),
        ("a.json", "[null]", "entry 1 of a.json is not a JSON object but null"),
        ("a.jsonl", '{"text": ' + "[" * 100_000, "line 1 of a.jsonl is not JSON: nested more than 64 deep"),
        ("a.json", '[{"text": ' + "[" * 100_000, "entry 1 of a.json is not JSON: nested more than 64 deep"),
        ("a.jsonl", '{"text": ' + "[" * 70 + "]" * 70 + "}", "line 1 of a.jsonl is not JSON: nested more than 64"),
        ("a.jsonl", '{"text": "\\ud800"}', "line 1 of a.jsonl is not JSON: text that is not UTF-8"),
        ("a.jsonl", '{"text": ' + "1" * 5000 + "}", "line 1 of a.jsonl is not JSON: Exceeds the limit"),
        ("a.json", '[{"text": "a"}', "entry 2 of a.json is not JSON"),
        ("a.json", "[1", "entry 1 of a.json is not a JSON object but 1"),
        ("a.csv", "text\nx\0y\n", None),
        ("a.parquet", "PAR1 no parquet PAR1", "a.parquet cannot be read as parquet: Arrow"),
        ("a.jsonl.gz", "not packed", "a.jsonl.gz cannot be read: Not a gzipped file"),
    ],
)
def test_hostile_rows(tmp_path: Path, name: str, text: str, said: str | None) -> None:
    path = write(tmp_path / name, text)
    if said is None:
        read(path)
        return
    with pytest.raises(InvalidInput) as refused:
        read(path)
    assert refused.value.message.startswith(said)
    assert refused.value.field == "calibration.dataset"


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.csv", "a.txt"])
def test_a_row_without_end_is_refused_in_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(rows, "LONGEST_ROW", 2**18)
    start = {"a.json": '[{"text": "', "a.csv": 'text\n"', "a.txt": ""}.get(name, '{"text": "')
    content = (start + "x" * 64 * 2**20).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    del content
    tracemalloc.start()
    with pytest.raises(InvalidInput, match=r"(more than|at most) 262,144 characters"):
        read(tmp_path / name)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 2**20


def test_a_long_list_on_one_line_is_read_as_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "LONGEST_ROW", 2**18)
    entries = ",".join(json.dumps({"text": "x" * 2000}) for _ in range(5_000))
    path = write(tmp_path / "a.json", f"[{entries}]")
    del entries
    tracemalloc.start()
    assert sum(1 for _ in rows_of(path, COLUMNS)) == 5_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * 2**20


def test_a_file_that_never_ends_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MOST_READ", 1000)
    with pytest.raises(InvalidInput, match=r"has more than 1,000 characters"):
        read(write(tmp_path / "a.jsonl", "\n" * 2000))


def test_a_native_reader_that_crashes_is_an_error_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of a file that crashes today's reader: the process has no stack, so that it ends with SIGSEGV."""
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"]}), tmp_path / "a.parquet")
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    resource.setrlimit(resource.RLIMIT_STACK, (2**14, hard))
    try:
        with pytest.raises(InvalidInput, match=r"cannot be read as parquet: the reader ended with signal \d+"):
            read(tmp_path / "a.parquet")
    finally:
        resource.setrlimit(resource.RLIMIT_STACK, (soft, hard))
