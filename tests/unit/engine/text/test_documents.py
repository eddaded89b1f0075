"""Built-in texts, files and data sets as documents; what crashed a native reader is refused, in little memory."""

import gzip
import json
import re
import resource
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from replaceme_core.engine.text import documents as module
from replaceme_core.engine.text import rows
from replaceme_core.engine.text.documents import (
    PARTS,
    PYDOC,
    Document,
    builtin_documents,
    documents,
    is_title,
    read_text_file,
)
from replaceme_core.engine.text.rows import rows_of
from replaceme_core.errors import InvalidInput
from replaceme_core.request.calibration import CalibrationSource
from replaceme_core.request.fields import BUILTIN_TEXTS, GENERAL, PARTS_OF_GENERAL

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
    assert sorted(file.name for file in texts.iterdir()) == sorted(
        [f"{part}.txt" for part in FILES] + ["questions.tsv"]
    )
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


@pytest.mark.parametrize("part", FILES)
def test_a_conversation_begins_with_the_user_and_ends_with_the_answer(part: str) -> None:
    if part not in CONVERSATIONS:
        assert all(isinstance(document, str) for document in read_text_file(part))
        return
    assert not re.search(r"^### (?!user\n|assistant\n)", raw(part), re.MULTILINE)
    for conversation in read_text_file(part):
        assert not isinstance(conversation, str)
        assert [turn["role"] for turn in conversation] == ["user", "assistant"] * (len(conversation) // 2)
        assert conversation
        for turn in conversation:
            assert turn["content"] == turn["content"].strip()
            assert turn["content"]


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


def spec(dataset: str = "file:text.jsonl", **fields: object) -> CalibrationSource:
    return CalibrationSource.model_validate({"dataset": dataset, **fields})


def jsonl(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_a_text_file_comes_whole_whatever_its_paragraphs(tmp_path: Path) -> None:
    text = "one\ntwo\n\n\nthree\n\nfour"
    (tmp_path / "a.txt").write_text("\ufeff" + text, encoding="utf-8")
    parts = list(documents(spec("file:a.txt"), tmp_path / "a.txt"))
    assert len(parts) > 2
    assert "".join(map(str, parts)) == text


def test_a_text_file_without_blank_lines_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST_PARAGRAPH", 8)
    (tmp_path / "a.txt").write_text("one\ntwo\nthree\n\nfour five six\nseven", encoding="utf-8")
    parts = list(documents(spec("file:a.txt"), tmp_path / "a.txt"))
    assert parts == ["one\ntwo\n", "three\n\n", "four five six\n", "seven"], "a line is never divided"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" = Robert Boulter = \n \n", True),
        (" = E = mc2 = \n\n", True),
        (" = = Career = = \n", False),
        ("== A ==\n", False),
        ("= A", False),
        ("a = b = c", False),
        ("= =", False),
        (" = A = \nmore", False),
        ([{"role": "user", "content": " = A = "}], False),
    ],
)
def test_titles(text: Document, expected: bool) -> None:
    assert is_title(text) is expected


TURNS = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("row", "column", "expected"),
    [
        ({"text": "plain"}, None, "plain"),
        ({"messages": TURNS, "text": "not this"}, None, TURNS),
        ({"text": "no", "body": "yes"}, "body", "yes"),
        (  # as SlimOrca has it
            {"conversations": [{"from": "system", "value": "Be brief."}, {"from": "gpt", "value": "4"}]},
            None,
            [{"role": "system", "content": "Be brief."}, {"role": "assistant", "content": "4"}],
        ),
        (  # of two sets in one file, in which each row has the fields of both
            {"conversations": [{"role": None, "content": None, "from": "human", "value": "2 and 2?"}]},
            None,
            [{"role": "user", "content": "2 and 2?"}],
        ),
        (  # as Alpaca has it
            {"instruction": "Add them.", "input": "2 and 2", "output": "4", "text": None},
            None,
            [{"role": "user", "content": "Add them.\n\n2 and 2"}, {"role": "assistant", "content": "4"}],
        ),
        (
            {"instruction": "Say hello.", "input": "", "output": "Hello."},
            None,
            [{"role": "user", "content": "Say hello."}, {"role": "assistant", "content": "Hello."}],
        ),
    ],
)
def test_a_row_is_a_text_or_a_conversation(tmp_path: Path, row: object, column: str | None, expected: object) -> None:
    path = jsonl(tmp_path / "a.jsonl", row, "", row)
    assert list(documents(spec(column=column), path)) == [expected] * 2


@pytest.mark.parametrize(
    ("row", "column", "message"),
    [
        ({"body": "x", "id": 3}, None, "the columns are body, id: name one as column"),
        ({"text": "x"}, "body", "no column 'body'.*the columns are text"),
        ({"text": 3}, None, "column 'text' has int where text or a conversation is expected"),
        ({"text": ["x"]}, "text", "column 'text' has list"),
        ({"messages": [{"role": "user"}]}, None, r"needs role and content as text, this one has role \(str\)$"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, None, r"has content \(list\), role \(str\)$"),
    ],
)
def test_rows_that_cannot_be_read(tmp_path: Path, row: object, column: str | None, message: str) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"text": "x", "body": "x"}, row)
    with pytest.raises(InvalidInput, match=rf"^row 2 of a\.jsonl: .*{message}"):
        list(documents(spec(column=column), path))


def parquet(path: Path, **columns: list[object]) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def test_a_data_set_of_parquet_by_split(tmp_path: Path) -> None:
    for split in ("train", "test"):
        parquet(tmp_path / f"{split}-00000-of-00001.parquet", text=[f"{split} {index}" for index in range(3)])
    assert list(documents(spec("org/set", split="test"), tmp_path)) == ["test 0", "test 1", "test 2"]


def test_rows_of_parquet_as_alpaca_has_them(tmp_path: Path) -> None:
    parquet(tmp_path / "train.parquet", instruction=["Add them."], input=["2 and 2"], output=["4"], text=[None])
    turns = [{"role": "user", "content": "Add them.\n\n2 and 2"}, {"role": "assistant", "content": "4"}]
    assert list(documents(spec("org/set"), tmp_path)) == [turns]


def test_a_row_without_an_answer_is_passed_over(tmp_path: Path) -> None:
    rows: list[object] = [{"instruction": "Say it.", "output": None}, {"instruction": "Say hello.", "output": "Hello."}]
    (found,) = documents(spec(), jsonl(tmp_path / "a.jsonl", *rows))
    assert found[1] == {"role": "assistant", "content": "Hello."}


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_file_that_cannot_be_opened(tmp_path: Path, name: str) -> None:
    """It was there when the job was admitted, by a process that need not open it."""
    with pytest.raises(InvalidInput, match=rf"^{name} cannot be read: No such file"):
        list(documents(spec(), tmp_path / name))


def test_bytes_are_no_text(tmp_path: Path) -> None:
    parquet(tmp_path / "train.parquet", text=[b"some text"])
    with pytest.raises(InvalidInput, match="column 'text' has "):
        list(documents(spec("org/set"), tmp_path))


@pytest.mark.parametrize("column", [None, "text"])
def test_a_row_with_nothing_in_its_column_is_passed_over(tmp_path: Path, column: str | None) -> None:
    texts: list[object] = ["a", None, "b"]
    rows = jsonl(tmp_path / "a.jsonl", *({"text": text, "id": 1} for text in texts))
    (tmp_path / "set").mkdir()
    parquet(tmp_path / "set" / "train.parquet", text=texts, id=[1, 2, 3])
    for path in (rows, tmp_path / "set"):
        assert list(documents(spec("org/set", column=column), path)) == ["a", "b"]


def test_the_longest_row_is_the_same_in_every_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "LONGEST_ROW", 1000)
    for text in ("a" * 900, "\u6f22\u0085\u2028" * 300):
        (found,) = rows_of(parquet(tmp_path / "a.parquet", text=[text]), COLUMNS)
        assert found["text"] == text


def test_an_empty_conversation_is_passed_over(tmp_path: Path) -> None:
    conversations: list[object] = [TURNS, [], None, TURNS]
    rows = jsonl(tmp_path / "a.jsonl", *({"messages": one} for one in conversations))
    (tmp_path / "set").mkdir()
    parquet(tmp_path / "set" / "train.parquet", messages=conversations)
    for path in (rows, tmp_path / "set"):
        assert list(documents(spec("org/set"), path)) == [TURNS, TURNS]


def test_a_text_ends_at_the_most_rows_and_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = jsonl(tmp_path / "a.jsonl", *({"text": ""} for _ in range(100)), {"text": "beyond"})
    monkeypatch.setattr(module, "MOST_ROWS", 50)
    assert list(documents(spec("file:a.jsonl"), path)) == [""] * 50
    nothing = jsonl(tmp_path / "c.jsonl", *({"text": None} for _ in range(100)), {"text": "beyond"})
    assert list(documents(spec("file:c.jsonl"), nothing)) == []
    monkeypatch.setattr(module, "MOST_ROWS", 1000)
    monkeypatch.setattr(module, "MOST_CHARACTERS", 10)
    path = jsonl(tmp_path / "b.jsonl", *({"text": "12345678"} for _ in range(100)))
    assert list(documents(spec("file:b.jsonl"), path)) == ["12345678"] * 2


COLUMNS = ("text", "messages")


def write(path: Path, text: str) -> Path:
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
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
        ("a.jsonl.gz", '{"text": "a"}\n', [{"text": "a"}]),
        ("a.csv", 'id,text\n1,"two\nlines"\n2,x\n', [{"id": "1", "text": "two\nlines"}, {"id": "2", "text": "x"}]),
        ("a.txt", "a\n\nb", [{"text": "a"}, {"text": ""}, {"text": "b"}]),
    ],
)
def test_each_format(tmp_path: Path, name: str, text: str, expected: list[object]) -> None:
    assert read(write(tmp_path / name, text)) == expected


def test_of_parquet_only_the_wanted_columns_have_values(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", text=["a", None], messages=[TURNS, TURNS], image=[b"x", b"y"])
    assert read(path) == [
        {"text": "a", "messages": TURNS, "image": None},
        {"text": None, "messages": TURNS, "image": None},
    ]


def test_a_reader_of_parquet_ends_when_enough_is_read(tmp_path: Path) -> None:
    found = rows_of(parquet(tmp_path / "a.parquet", text=["some text"] * 100_000), COLUMNS)
    assert isinstance(found, Iterator)
    assert next(found)["text"] == "some text"
    found.close()  # type: ignore[attr-defined]  # of a generator; a reader that stayed would be a warning, an error here


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.json", "[null]", "entry 1 of a.json is not a JSON object but null"),
        ("a.jsonl", '{"text": ' + "[" * 100_000, "line 1 of a.jsonl is not JSON: nested more than 64 deep"),
        ("a.json", '[{"text": ' + "[" * 100_000, "entry 1 of a.json is not JSON: nested more than 64 deep"),
        ("a.jsonl", '{"text": "\\ud800"}', "line 1 of a.jsonl is not JSON: text that is not UTF-8"),
        ("a.jsonl", '{"text": ' + "1" * 5000 + "}", "line 1 of a.jsonl is not JSON: Exceeds the limit"),
        ("a.json", '[{"text": "a"}', "entry 2 of a.json is not JSON"),
        ("a.csv", "text\nx\0y\n", None),
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


@contextmanager
def peak_below(most: int) -> Iterator[None]:
    """In bytes, of what Python allocates."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.csv"])
def test_a_row_without_end_is_refused_in_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(rows, "LONGEST_ROW", 2**18)
    start = {"a.json": '[{"text": "', "a.csv": 'text\n"', "a.txt": ""}.get(name, '{"text": "')
    path = write(tmp_path / name, start + "x" * 16 * 2**20)
    with peak_below(4 * 2**20), pytest.raises(InvalidInput, match=r"(more than|at most) 262,144 characters"):
        read(path)


def test_a_row_of_many_lines_is_refused_in_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "LONGEST_ROW", 2**18)
    path = write(tmp_path / "a.csv", 'text\n"' + ("x" * 2**16 + '","\n') * 256)
    with peak_below(4 * 2**20), pytest.raises(InvalidInput, match="more than 262,144 characters"):
        read(path)


def test_a_long_list_on_one_line_is_read_as_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "LONGEST_ROW", 2**18)
    entries = ",".join(json.dumps({"text": "x" * 2000}) for _ in range(2_000))
    path = write(tmp_path / "a.json", f"[{entries}]")
    del entries
    with peak_below(2 * 2**20):
        assert sum(1 for _ in rows_of(path, COLUMNS)) == 2_000


def test_a_file_that_never_ends_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MOST_READ", 1000)
    with pytest.raises(InvalidInput, match=r"has more than 1,000 characters"):
        read(write(tmp_path / "a.jsonl", "\n" * 2000))


def test_a_native_reader_that_crashes_is_an_error_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of a file that crashes today's reader: the process has no stack, so that it ends with SIGSEGV."""
    path = parquet(tmp_path / "a.parquet", text=["a"])
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    resource.setrlimit(resource.RLIMIT_STACK, (2**14, hard))
    try:
        with pytest.raises(InvalidInput, match=r"cannot be read as parquet: the reader ended with signal \d+"):
            read(path)
    finally:
        resource.setrlimit(resource.RLIMIT_STACK, (soft, hard))


def test_a_long_error_of_the_native_reader_is_an_error_of_the_file(tmp_path: Path) -> None:
    """The reader ends, although nobody reads its error meanwhile: of this one, the name of a time zone."""
    times = pyarrow.array([1], pyarrow.timestamp("us", tz="x" * 300_000))
    pyarrow.parquet.write_table(pyarrow.table({"text": times}), tmp_path / "a.parquet")
    with pytest.raises(InvalidInput, match=r"a\.parquet cannot be read as parquet: .*x{50}"):
        read(tmp_path / "a.parquet")
