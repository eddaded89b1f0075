"""Built-in texts, files and data sets as documents."""

import json
import re
from importlib import resources
from pathlib import Path

import pytest

from replaceme_core.engine.text import documents as module
from replaceme_core.engine.text.documents import (
    PARTS,
    PYDOC,
    Document,
    builtin_documents,
    documents,
    is_title,
    read_text_file,
)
from replaceme_core.errors import InvalidInput
from replaceme_core.request.calibration import GENERAL, PARTS_OF_GENERAL, CalibrationSource
from replaceme_core.request.fields import BUILTIN_TEXTS

FILES = ("code", "dialogue", "essays", "instructions", "stories")
CONVERSATIONS = ("dialogue", "instructions")
ABOUT_MODELS = re.compile(
    r"\b(AI|artificial intelligence|language models?|LLMs?|chat ?bots?|neural|machine learning|compress\w*"
    r"|prun(?:e|ed|ing)|as an assistant|ChatGPT|transformers?|the capital of)\b"
)


def raw(part: str) -> str:
    texts = resources.files("replaceme_core.engine.text") / "texts"
    return (texts / f"{part}.txt").read_bytes().decode("utf-8")


def plain(document: Document) -> str:
    return document if isinstance(document, str) else "\n".join(turn["content"] for turn in document)


def test_the_files_are_those_that_the_names_stand_for() -> None:
    texts = resources.files("replaceme_core.engine.text") / "texts"
    assert sorted(file.name for file in texts.iterdir()) == [f"{part}.txt" for part in FILES]
    assert sorted({part for parts in PARTS.values() for part in parts}) == list(FILES)
    assert {*PARTS, PYDOC} == set(BUILTIN_TEXTS)
    assert set(PARTS) == {GENERAL, *PARTS_OF_GENERAL}


@pytest.mark.parametrize("part", FILES)
def test_a_text_is_clean(part: str) -> None:
    text = raw(part)
    assert 38_000 <= len(text) <= 44_000
    assert text.endswith("\n")
    assert not re.search(r"[\r\ufeff\ufffd]|[\x00-\x08\x0b-\x1f\x7f]|[‘’“”]", text)
    assert "%%%%" not in text.replace("\n%%%%\n", "")
    assert ABOUT_MODELS.findall(text) == []
    documents = [plain(document) for document in read_text_file(part)]
    assert len(documents) >= 12
    assert all(document == document.strip("\n") and len(document) > 300 for document in documents)


def test_no_document_or_opening_comes_twice() -> None:
    documents = [plain(document) for part in FILES for document in read_text_file(part)]
    assert len(set(documents)) == len(documents)
    openings = [document[:40] for document in documents if not document.startswith("#!")]
    assert len(set(openings)) == len(openings)
    long_lines = [line for document in documents for line in document.splitlines() if len(line) > 100]
    assert len(set(long_lines)) == len(long_lines)


@pytest.mark.parametrize("part", CONVERSATIONS)
def test_a_conversation_begins_with_the_user_and_ends_with_the_answer(part: str) -> None:
    assert not re.search(r"^### (?!user\n|assistant\n)", raw(part), re.MULTILINE)
    for conversation in read_text_file(part):
        assert not isinstance(conversation, str)
        assert [turn["role"] for turn in conversation] == ["user", "assistant"] * (len(conversation) // 2)
        assert conversation
        for turn in conversation:
            assert turn["content"] == turn["content"].strip()
            assert turn["content"]


@pytest.mark.parametrize("part", sorted(set(FILES) - set(CONVERSATIONS)))
def test_other_documents_are_plain_text(part: str) -> None:
    assert all(isinstance(document, str) for document in read_text_file(part))


@pytest.mark.parametrize("name", BUILTIN_TEXTS)
def test_a_text_is_read_whole_and_always_in_the_same_order(name: str) -> None:
    once, twice = (list(builtin_documents(name)) for _ in range(2))
    assert once == twice
    if name == PYDOC:
        assert sum(len(plain(document)) for document in once) > 400_000
    else:
        assert sorted(map(plain, once)) == sorted(plain(each) for part in PARTS[name] for each in read_text_file(part))


@pytest.mark.parametrize("name", ["builtin:general", "builtin:prose"])
def test_each_part_of_a_mixed_text_has_documents_of_every_kind(name: str) -> None:
    kind_of = {plain(document): part for part in PARTS[name] for document in read_text_file(part)}
    kinds = [kind_of[plain(document)] for document in builtin_documents(name)]
    tenth = len(kinds) // 10
    for start in range(0, len(kinds) - tenth, tenth):
        assert set(kinds[start : start + tenth + 2]) == set(PARTS[name]), start


def test_another_name_is_refused_with_those_that_exist() -> None:
    with pytest.raises(InvalidInput, match=r"no built-in text 'builtin:other'; available: .*builtin:code"):
        list(builtin_documents("builtin:other"))


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
