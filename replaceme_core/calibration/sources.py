"""Read calibration text as a stream of documents, each a string or a conversation.

Files and snapshots are already on this machine; nothing here opens a connection.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from replaceme_core.calibration.builtin import builtin_documents
from replaceme_core.calibration.document import Document
from replaceme_core.calibration_spec import CalibrationSource
from replaceme_core.errors import InvalidInput, ReplaceMeError
from replaceme_core.hub.data_files import format_of, local_data_files
from replaceme_core.json_values import shorten

_TEXT_COLUMNS = ("text", "content", "document")
_CHAT_COLUMNS = ("messages", "conversations", "conversation")
_BUILDERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv", ".txt": "text"}
_TITLE = re.compile(r"\s*= (?!=)[^\n]*[^=\s] =\s*")
_ROLES = {"human": "user", "gpt": "assistant", "system": "system"}


def documents(source: CalibrationSource, path: Path | None) -> Iterator[Document]:
    """The documents of a built-in text, a .txt or .jsonl file, or a snapshot of a Hub data set.

    Raises `InvalidInput` for a file that cannot be read as its suffix says, or that has no column with text; the field
    is that of a single `dataset` ("calibration.column").
    """
    if path is None:
        return builtin_documents(source.name)
    if path.is_dir():
        return _snapshot(source, path)
    return _jsonl(path, source.column) if path.suffix == ".jsonl" else _text(path)


def is_title(document: Document) -> bool:
    """Whether this is nothing but the title of a document, as WikiText writes it: ` = Title = `."""
    return isinstance(document, str) and _TITLE.fullmatch(document) is not None


def _lines(path: Path) -> Iterator[str]:
    """Raises `InvalidInput` where the file is not UTF-8."""
    try:
        with path.open(encoding="utf-8-sig") as lines:
            yield from lines
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"{path.name} is not UTF-8 text: {error.reason} at byte {error.start}",
            field="calibration.dataset",
            value=path.name,
        ) from None


def _text(path: Path) -> Iterator[str]:
    """Yield paragraphs, each with its blank line, so that a file of any size takes little memory."""
    paragraph: list[str] = []
    for line in _lines(path):
        paragraph.append(line)
        if not line.strip():
            yield "".join(paragraph)
            paragraph = []
    if paragraph:
        yield "".join(paragraph)


def _jsonl(path: Path, column: str | None) -> Iterator[Document]:
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InvalidInput(
                f"line {number} of {path.name} is not JSON: {error}", field="calibration.dataset", value=path.name
            ) from None
        if not isinstance(row, dict):
            raise InvalidInput(
                f"line {number} of {path.name} is not a JSON object", field="calibration.dataset", value=path.name
            )
        yield _document(row, column)


def _snapshot(source: CalibrationSource, path: Path) -> Iterator[Document]:
    """The rows of the files of config and split, streamed by `datasets` from this machine without its cache."""
    import datasets

    files = local_data_files(path, config=source.config, split=source.split)
    builder = _BUILDERS[format_of(files[0].name) or ""]
    try:
        rows = datasets.load_dataset(builder, data_files=[str(file) for file in files], split="train", streaming=True)
        for row in rows:
            yield _document(row, source.column)
    except ReplaceMeError:
        raise
    except Exception as error:  # of pyarrow, pandas, datasets and what they are built on: nearly everything
        raise InvalidInput(
            f"data set {source.name} cannot be read: {shorten(' '.join(str(error).split()), 300)}",
            field="calibration",
            value=source.name,
        ) from None


def _document(row: Mapping[str, object], column: str | None) -> Document:
    names = (column,) if column is not None else (*_CHAT_COLUMNS, *_TEXT_COLUMNS)
    for name in names:
        value = row.get(name)
        if isinstance(value, str):
            return value
        if isinstance(value, list) and all(isinstance(turn, dict) for turn in value):
            return [_message(turn) for turn in value]
    wanted = f"column {column!r}" if column else f"none of the columns {', '.join(names)}"
    raise InvalidInput(
        f"{'no ' + wanted if column else wanted} with text or a conversation; the columns are "
        f"{', '.join(sorted(row))}: name one as column",
        field="calibration.column",
        value=column,
    )


def _message(turn: Mapping[str, object]) -> dict[str, str]:
    """A message as `{role, content}`, from that form or from ShareGPT's `{from, value}`."""
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if not isinstance(role, str) or not isinstance(content, str):
        raise InvalidInput(
            f"each turn of a conversation needs role and content as text, this one has {', '.join(sorted(turn))}",
            field="calibration.column",
        )
    return {"role": _ROLES.get(role, role), "content": content}
