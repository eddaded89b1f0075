"""Rows of the files of a data set, within limits. A stranger wrote them.

Text is read a line at a time, by Python alone: native readers crash on some files that are not what they expect.
Parquet needs a native reader, which runs in a process of its own (`parquet_rows.py`) and sends lines of JSON.
"""

import csv
import gzip
import itertools
import json
import re
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TextIO, cast

from replaceme_core.errors import InvalidInput
from replaceme_core.hub.data_files import format_of
from replaceme_core.wording import check_json, read_json, shorten

LONGEST_ROW = 16 * 2**20  # characters of one row, with all its columns; the longest documents of common sets have 2 M
MOST_LEVELS = 64
MOST_READ = 2**32  # characters of one file, after it has been unpacked
_READ_AT_ONCE = 2**16
_SPACE = re.compile(r"[\s,]*")

Row = Mapping[str, object]


def rows_of(file: Path, columns: Sequence[str]) -> Iterator[Row]:
    """The rows of a .parquet, .jsonl, .json, .csv or .txt file, packed by gzip or not.

    Of parquet only `columns` have values. Raises `InvalidInput` for a file that is not what its suffix says, and for a
    row that is longer than `LONGEST_ROW`, deeper than `MOST_LEVELS` or no object.
    """
    suffix = format_of(file.name)
    if suffix == ".parquet":
        yield from _parquet(file, columns)
        return
    with opened(file) as stream:
        match suffix:
            case ".csv":
                yield from _csv(stream, file)
            case ".txt":
                for line in lines_of(stream, file):
                    yield {"text": line.rstrip("\n")}
            case _:
                yield from _json_rows(stream, file)


def _json_rows(stream: TextIO, file: Path) -> Iterator[Row]:
    """Objects on a line each; in a .json file they may also be those of one list."""
    if format_of(file.name) == ".json":
        with _readable(file):
            start = stream.read(_READ_AT_ONCE)
            stream.seek(0)
        if start.lstrip().startswith("["):
            yield from _list(stream, file)
            return
    for number, line in enumerate(lines_of(stream, file), start=1):
        if line.strip():
            yield _parsed(line, f"line {number}", file)


def lines_of(stream: TextIO, file: Path) -> Iterator[str]:
    """Lines with their ends. Raises `InvalidInput` for one that is too long, and for text that is not UTF-8."""
    left = MOST_READ
    with _readable(file):
        while line := stream.readline(LONGEST_ROW + 1):
            left -= len(line)
            if len(line) > LONGEST_ROW:
                raise _too_long(file)
            if left < 0:
                raise _too_large(file)
            yield line


@contextmanager
def opened(file: Path) -> Iterator[TextIO]:
    """The text of a file, unpacked. Raises `InvalidInput` for one that cannot be read."""
    unpacked = gzip.open if file.suffix == ".gz" else open
    with _readable(file), unpacked(file, "rt", encoding="utf-8-sig") as stream:
        yield cast(TextIO, stream)


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise _refused(file, f"is not UTF-8 text: {error.reason} at byte {error.start}") from None
    except (OSError, EOFError, zlib.error) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise _refused(file, f"cannot be read: {reason}") from None


def _parsed(text: str, place: str, file: Path) -> Row:
    try:
        return _row(read_json(text, levels=MOST_LEVELS), place, file)
    except ValueError as error:
        raise _not_json(error, place, file) from None


def _row(value: object, place: str, file: Path) -> Row:
    if not isinstance(value, dict):
        raise _refused(file, f"is not a JSON object but {shorten(json.dumps(value), 40)}", place)
    return value


def _list(stream: TextIO, file: Path) -> Iterator[Row]:
    """The entries of one list, read as they are needed."""
    decoder = json.JSONDecoder()
    text = stream.read(_READ_AT_ONCE)
    place, left = text.index("[") + 1, MOST_READ
    for number in itertools.count(1):
        needed = _READ_AT_ONCE
        while True:
            place = _end_of_space(text, place)
            if text.startswith("]", place):
                return
            try:
                value, end = decoder.raw_decode(text, place)
            except RecursionError:
                raise _not_json(f"nested more than {MOST_LEVELS} deep", f"entry {number}", file) from None
            except ValueError as error:
                with _readable(file):
                    more = stream.read(needed)
                left -= len(more)
                text, place, needed = text[place:] + more, 0, 2 * needed  # so that a long entry is not tried too often
                if not more:
                    raise _not_json(error, f"entry {number}", file) from None
                if len(text) > 2 * LONGEST_ROW:
                    what = f"is not JSON of at most {LONGEST_ROW:,} characters"
                    raise _refused(file, what, f"entry {number}") from None
                if left < 0:
                    raise _too_large(file) from None
            else:
                break
        try:
            check_json(value, levels=MOST_LEVELS)
        except ValueError as error:
            raise _not_json(error, f"entry {number}", file) from None
        yield _row(value, f"entry {number}", file)
        text, place = (text[end:], 0) if end > _READ_AT_ONCE else (text, end)


def _end_of_space(text: str, place: int) -> int:
    found = _SPACE.match(text, place)
    assert found is not None, "it matches nothing too"
    return found.end()


def _csv(stream: TextIO, file: Path) -> Iterator[Row]:
    csv.field_size_limit(LONGEST_ROW)
    left = LONGEST_ROW

    def lines() -> Iterator[str]:
        nonlocal left
        for line in lines_of(stream, file):
            left -= len(line)
            if left < 0:  # a row in quotes may have many lines
                raise _too_long(file)
            yield line

    reader = csv.DictReader(lines())
    try:
        for row in reader:
            left = LONGEST_ROW
            yield {name: value for name, value in row.items() if isinstance(name, str)}
    except csv.Error as error:
        raise _refused(file, f"cannot be read in line {reader.line_num}: {error}") from None


def _parquet(file: Path, columns: Sequence[str]) -> Iterator[Row]:
    command = [sys.executable, "-P", "-m", "replaceme_core.engine.text.parquet_rows", str(file), *columns]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:  # in a pipe a long one would wait
        reader = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, encoding="utf-8"
        )
        assert reader.stdout is not None
        try:
            names: Sequence[str] = ()
            for number, line in enumerate(lines_of(cast(TextIO, reader.stdout), file)):
                row = _parsed(line, f"row {number}", file)
                if number == 0:
                    names = tuple(row)
                else:
                    yield {**dict.fromkeys(names), **row}
            if reader.wait() != 0:
                raise _refused(file, f"cannot be read as parquet: {_end_of(reader, errors)}")
        finally:
            reader.kill()
            reader.wait()
            reader.stdout.close()


def _end_of(reader: "subprocess.Popen[str]", errors: IO[str]) -> str:
    """Why the process has ended, in one line."""
    errors.seek(0)
    said = errors.read(LONGEST_ROW).strip().splitlines()
    if reader.returncode < 0:
        return f"the reader ended with signal {-reader.returncode}"
    return shorten(said[-1], 300) if said else f"the reader ended with exit status {reader.returncode}"


def _too_long(file: Path) -> InvalidInput:
    return _refused(file, f"has a row of more than {LONGEST_ROW:,} characters; remove it or divide it")


def _too_large(file: Path) -> InvalidInput:
    return _refused(file, f"has more than {MOST_READ:,} characters; use a smaller file")


def _not_json(why: object, place: str, file: Path) -> InvalidInput:
    return _refused(file, f"is not JSON: {why}", place)


def _refused(file: Path, what: str, place: str | None = None) -> InvalidInput:
    """`place` is where in the file: "line 3"."""
    name = file.name if place is None else f"{place} of {file.name}"
    return InvalidInput(f"{name} {what}", field="calibration.dataset", value=file.name)
