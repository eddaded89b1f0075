import json
from pathlib import Path

import pytest

from replaceme_core.engine.text import documents as module
from replaceme_core.engine.text.documents import documents, is_title
from replaceme_core.errors import InvalidInput
from replaceme_core.request.calibration import CalibrationSource


def spec(dataset: str = "file:text.jsonl", **fields: object) -> CalibrationSource:
    return CalibrationSource.model_validate({"dataset": dataset, **fields})


def jsonl(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_the_built_in_text_is_large_and_always_the_same() -> None:
    once, twice = (list(documents(spec("builtin:pydoc-topics"), None)) for _ in range(2))
    assert once == twice
    assert sum(map(len, once)) > 400_000


def test_a_text_file_comes_whole_whatever_its_paragraphs(tmp_path: Path) -> None:
    text = "one\ntwo\n\n\nthree\n\nfour"
    (tmp_path / "a.txt").write_text("\ufeff" + text, encoding="utf-8")
    parts = list(documents(spec("file:a.txt"), tmp_path / "a.txt"))
    assert len(parts) > 2
    assert "".join(map(str, parts)) == text


@pytest.mark.parametrize("title", [" = Robert Boulter = \n \n", "= A =\n", " = E = mc2 = \n\n", "= x ="])
def test_titles(title: str) -> None:
    assert is_title(title)


@pytest.mark.parametrize(
    "text",
    [" = = Career = = \n", "== A ==\n", "= A", "A =", "a = b = c", "= =", " = A = \nmore", "", "= A = \n\n= B =\n"],
)
def test_what_is_no_title(text: str) -> None:
    assert not is_title(text)
    assert not is_title([{"role": "user", "content": " = A = "}])


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"abc\xff\xfe")
    with pytest.raises(InvalidInput, match=r"a\.txt is not UTF-8 text: .* at byte 3"):
        list(documents(spec("file:a.txt"), tmp_path / "a.txt"))


def test_jsonl_text_and_conversations(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "hi"}]
    path = jsonl(
        tmp_path / "a.jsonl",
        {"text": "plain"},
        "",
        {"messages": turns, "text": "not this"},
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]},
    )
    assert list(documents(spec(), path)) == [
        "plain",
        turns,
        [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}],
    ]


def test_a_named_column(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"text": "no", "body": "yes"})
    assert list(documents(spec(column="body"), path)) == ["yes"]


@pytest.mark.parametrize(
    ("row", "column", "message"),
    [
        ("{not json", None, "line 1 of a.jsonl is not JSON"),
        ([1, 2], None, "line 1 of a.jsonl is not a JSON object"),
        ({"body": "x", "id": 3}, None, "the columns are body, id: name one as column"),
        ({"text": "x"}, "body", "no column 'body'.*the columns are text"),
        ({"text": 3}, None, "the columns are text"),
        ({"messages": [{"role": "user"}]}, None, "needs role and content"),
    ],
)
def test_rows_that_cannot_be_read(tmp_path: Path, row: object, column: str | None, message: str) -> None:
    path = jsonl(tmp_path / "a.jsonl", row)
    with pytest.raises(InvalidInput, match=message):
        list(documents(spec(column=column), path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "\xff"}', "a.jsonl is not UTF-8 text: invalid start byte at byte 10"),
        (b'{"text": ' + b"[" * 100_000, "line 1 of a.jsonl is not JSON: nested more than 64 deep"),
    ],
)
def test_lines_that_are_no_text(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(InvalidInput, match=message):
        list(documents(spec(), tmp_path / "a.jsonl"))


def test_a_data_set_of_parquet_by_split(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    for split in ("train", "test"):
        table = pyarrow.table({"text": [f"{split} {index}" for index in range(3)]})
        pyarrow.parquet.write_table(table, tmp_path / f"{split}-00000-of-00001.parquet")
    assert list(documents(spec("org/set", split="test"), tmp_path)) == ["test 0", "test 1", "test 2"]


def test_a_damaged_data_set(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(InvalidInput, match=r"train\.parquet cannot be read as parquet: Arrow"):
        list(documents(spec("org/set"), tmp_path))


SLIM_ORCA = [
    {"from": "system", "value": "Be brief."},
    {"from": "human", "value": "What is 2 + 2?"},
    {"from": "gpt", "value": "4"},
]


def test_instructions_with_and_without_input_are_conversations(tmp_path: Path) -> None:
    """As Alpaca has them; and in other columns, conversations as SlimOrca has them."""
    path = jsonl(
        tmp_path / "a.jsonl",
        {"instruction": "Add them.", "input": "2 and 2", "output": "4", "text": None},
        {"instruction": "Say hello.", "input": "", "output": "Hello."},
        {"conversations": SLIM_ORCA},
    )
    found = list(documents(spec("file:a.jsonl"), path))
    assert found == [
        [{"role": "user", "content": "Add them.\n\n2 and 2"}, {"role": "assistant", "content": "4"}],
        [{"role": "user", "content": "Say hello."}, {"role": "assistant", "content": "Hello."}],
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "What is 2 + 2?"},
            {"role": "assistant", "content": "4"},
        ],
    ]


def test_a_text_ends_at_the_most_rows_and_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = jsonl(tmp_path / "a.jsonl", *({"text": ""} for _ in range(100)), {"text": "beyond"})
    monkeypatch.setattr(module, "MOST_ROWS", 50)
    assert list(documents(spec("file:a.jsonl"), path)) == [""] * 50
    monkeypatch.setattr(module, "MOST_ROWS", 1000)
    monkeypatch.setattr(module, "MOST_CHARACTERS", 10)
    path = jsonl(tmp_path / "b.jsonl", *({"text": "12345678"} for _ in range(100)))
    assert list(documents(spec("file:b.jsonl"), path)) == ["12345678"] * 2
