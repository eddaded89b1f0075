"""`python -m replaceme_core.engine.text.parquet_rows FILE COLUMN...`: the rows of a parquet file, a line of JSON each.

The first line is an object with the names of all columns; the others have values of the named ones only: bytes in
base64, and names in place of the numbers of classes, where the library datasets has left these in the file. It is a
process of its own, with limits of memory: the reader is native code, which a file that a stranger wrote may crash.
"""

import base64
import json
import resource
import sys
from collections.abc import Sequence

import pyarrow
import pyarrow.parquet

MOST_BYTES = 4 * 2**30
"""Of the process's data, less under a lower hard limit. The reader holds one group of rows at a time."""
ROWS_AT_ONCE = 64


def main(path: str, columns: list[str]) -> None:
    """Write the rows. Raises what the reader raises."""
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]  # the runner may have one, which only root can raise
    soft = MOST_BYTES if hard == resource.RLIM_INFINITY else min(MOST_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
    with pyarrow.parquet.ParquetFile(path, memory_map=False, pre_buffer=False) as file:
        names = file.schema_arrow.names
        _write(dict.fromkeys(names))
        wanted = [name for name in columns if name in names]
        classes = _classes((file.schema_arrow.metadata or {}).get(b"huggingface"))
        for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=wanted):
            for row in batch.to_pylist():
                _write({name: _named(value, classes.get(name, ())) for name, value in row.items()})


def _classes(features: bytes | None) -> dict[str, list[str]]:
    """By column, the names of its classes."""
    try:
        columns = json.loads(features or b"{}")["info"]["features"]
        return {name: list(map(str, each["names"])) for name, each in columns.items() if "names" in each}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _named(value: object, classes: Sequence[str]) -> object:
    if isinstance(value, bytes):
        return {"bytes": value}  # as images are stored in data sets: no text
    return classes[value] if type(value) is int and 0 <= value < len(classes) else value


def _write(row: dict[str, object]) -> None:
    line = json.dumps(row, ensure_ascii=False, default=_plain)  # escapes would count as many characters in a limit
    sys.stdout.buffer.write(f"{line}\n".encode())


def _plain(value: object) -> str:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[2:])
    except BrokenPipeError:  # as many rows as are needed have been read
        sys.exit(0)
    except (pyarrow.ArrowException, OSError, ValueError, MemoryError, RecursionError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
