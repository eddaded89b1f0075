"""Calibration text as a stream of documents, each a string or a conversation.

Built-in texts come with the package; all but the help of Python were written for this project
(docs/reference/built-in-texts.md). Files and snapshots are already on this machine; nothing here opens a connection.
"""

import re
from collections.abc import Iterator, Mapping
from importlib import resources
from itertools import islice
from pathlib import Path

from replaceme_core.engine.text.rows import Row, lines_of, opened, rows_of
from replaceme_core.errors import InvalidInput
from replaceme_core.hub.data_files import local_data_files
from replaceme_core.request.calibration import CalibrationSource

Conversation = list[dict[str, str]]
"""Turns with `role` and `content`."""
Document = str | Conversation


PARTS = {
    "builtin:prose": ("stories", "essays"),
    "builtin:dialogue": ("dialogue",),
    "builtin:code": ("code",),
    "builtin:instructions": ("instructions",),
    "builtin:general": ("stories", "essays", "dialogue", "code", "instructions"),
}
"""The files in `texts` that each name stands for."""
PYDOC = "builtin:pydoc-topics"
_SEPARATOR = "\n%%%%\n"
_TURN = re.compile(r"^### (user|assistant)\n", re.MULTILINE)


def builtin_documents(name: str) -> Iterator[Document]:
    """The documents of a built-in text in a fixed order, in which those of its files alternate.

    So every part of the text has documents of every kind, each in proportion.
    """
    if name == PYDOC:
        from pydoc_data.topics import topics

        yield from (topics[title] for title in sorted(topics))
        return
    files = [read_text_file(part) for part in PARTS[name]]
    sizes = enumerate(map(len, files))
    places = [((index + 0.5) / size, kind, index) for kind, size in sizes for index in range(size)]
    for _, kind, index in sorted(places):
        yield files[kind][index]


def read_text_file(part: str) -> list[Document]:
    """The documents of one file: conversations where it marks turns with `### user` and `### assistant`."""
    file = resources.files("replaceme_core.engine.text") / "texts" / f"{part}.txt"
    found = file.read_text(encoding="utf-8").removesuffix("\n").split(_SEPARATOR)
    return [_conversation(document) if _TURN.match(document) else document for document in found]


def _conversation(document: str) -> Conversation:
    before, *rest = _TURN.split(document)
    assert before == "", "a conversation begins with a turn"
    turns = zip(rest[::2], rest[1::2], strict=True)
    return [{"role": role, "content": content.strip("\n")} for role, content in turns]


MOST_ROWS = 2_000_000
MOST_CHARACTERS = 2**31
LONGEST_PARAGRAPH = 2**16
"""Characters, some 16,000 tokens: else a file of a line per sentence, without blank lines, is read whole for a few."""
_INSTRUCTION, _INPUT, _ANSWER = "instruction", "input", "output"
"""Columns of Alpaca."""
_TEXT_COLUMNS = ("text", "content", "document")
_CHAT_COLUMNS = ("messages", "conversations", "conversation")
_TITLE = re.compile(r"\s*= (?!=)[^\n]*[^=\s] =\s*")
_ROLES = {"human": "user", "gpt": "assistant", "system": "system"}


def documents(source: CalibrationSource, path: Path | None) -> Iterator[Document]:
    """The documents of a built-in text, a .txt or .jsonl file, or a snapshot of a Hub data set.

    At most the first `MOST_ROWS` rows and `MOST_CHARACTERS` of text. Raises `InvalidInput` for a file that cannot be
    read as its suffix says, or that has no column with text; the field is that of a single `dataset`
    ("calibration.column").
    """
    if path is None:
        return builtin_documents(source.name)
    return _limited(_of_rows(source, path) if path.is_dir() or path.suffix == ".jsonl" else _text(path))


def _limited(found: Iterator[Document | None]) -> Iterator[Document]:
    """A text beyond the limits ends there: rows without text, or files that are small when compressed, have no end."""
    left = MOST_CHARACTERS
    for document in islice(found, MOST_ROWS):
        if document is None:
            continue
        yield document
        left -= len(document) if isinstance(document, str) else sum(len(turn["content"]) for turn in document)
        if left <= 0:
            return


def is_running_text(path: Path | None) -> bool:
    """Whether the documents in the file are the paragraphs of one text, so that nothing separates them."""
    return path is not None and path.suffix == ".txt"


def is_title(document: Document) -> bool:
    """Whether this is nothing but the title of a document, as WikiText writes it: ` = Title = `."""
    return isinstance(document, str) and _TITLE.fullmatch(document) is not None


def _text(path: Path) -> Iterator[str]:
    """Yield paragraphs, each with its blank line, so that a file of any size takes little memory.

    A long one is divided at the end of a line.
    """
    with opened(path) as stream:
        paragraph: list[str] = []
        size = 0
        for line in lines_of(stream, path):
            paragraph.append(line)
            size += len(line)
            if not line.strip() or size >= LONGEST_PARAGRAPH:
                yield "".join(paragraph)
                paragraph, size = [], 0
        if paragraph:
            yield "".join(paragraph)


def _of_rows(source: CalibrationSource, path: Path) -> Iterator[Document | None]:
    """Those in the rows of one file, or of the files of config and split in a snapshot, in the order of their names."""
    files = local_data_files(path, config=source.config, split=source.split) if path.is_dir() else [path]
    for file in files:
        rows = rows_of(file, (*_wanted(source.column), _INSTRUCTION, _INPUT, _ANSWER))
        for number, row in enumerate(rows, start=1):
            try:
                document = _document(row, source.column)
            except InvalidInput as error:
                place = f"row {number} of {file.name}"
                raise InvalidInput(f"{place}: {error}", field=error.field, value=error.value) from None
            yield document


def _wanted(column: str | None) -> tuple[str, ...]:
    return (column,) if column is not None else (*_CHAT_COLUMNS, *_TEXT_COLUMNS)


def _document(row: Row, column: str | None) -> Document | None:
    """The document in a row; `None` where a column of texts has nothing in this one."""
    names = _wanted(column)
    for name in names:
        value = row.get(name)
        if isinstance(value, str):
            return value
        if value and isinstance(value, list) and all(isinstance(turn, dict) for turn in value):
            return [_message(turn) for turn in value]
    if column is None and (conversation := _instruction(row)):
        return conversation
    pair = (_INSTRUCTION, _ANSWER) if column is None and row.keys() >= {_INSTRUCTION, _ANSWER} else ()
    if any(name in row and not row[name] for name in (*names, *pair)):
        return None
    missing = f"no column {column!r}" if column else f"none of the columns {', '.join(names)}"
    others = (f"column {name!r} has {type(row[name]).__name__}" for name in names if row.get(name) is not None)
    raise InvalidInput(
        f"{next(others, missing)} where text or a conversation is expected; the columns are "
        f"{', '.join(sorted(row))}: name one as column",
        field="calibration.column",
        value=column,
    )


def _instruction(row: Row) -> Document | None:
    """A row in the style of Alpaca as one question and its answer; `None` for another one."""
    asked, given, answer = (row.get(name) for name in (_INSTRUCTION, _INPUT, _ANSWER))
    if not isinstance(asked, str) or not isinstance(answer, str):
        return None
    question = f"{asked}\n\n{given}" if isinstance(given, str) and given else asked
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _message(turn: Mapping[str, object]) -> dict[str, str]:
    """A message as `{role, content}`, from that form or from ShareGPT's `{from, value}`."""
    role, content = (
        next((turn[name] for name in names if turn.get(name) is not None), None)
        for names in (("role", "from"), ("content", "value"))
    )
    if not isinstance(role, str) or not isinstance(content, str):
        raise InvalidInput(
            "each turn of a conversation needs role and content as text, this one has "
            + ", ".join(f"{name} ({type(turn[name]).__name__})" for name in sorted(turn)),
            field="calibration.column",
        )
    return {"role": _ROLES.get(role, role), "content": content}
