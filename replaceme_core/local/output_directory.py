"""The directory of a result: complete, or absent."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from replaceme_core.errors import InvalidInput


def check_absent(out: Path) -> None:
    """Raises `InvalidInput` if `out` exists."""
    if out.exists() or out.is_symlink():
        raise InvalidInput(f"{out} already exists; choose a new directory with --out", field="out", value=str(out))


def make_staging(out: Path) -> Path:
    """A temporary directory beside `out`, on the same device. Raises `InvalidInput` if `out` exists."""
    check_absent(out)
    try:
        parent = out.absolute().parent
        parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=parent))
    except OSError as error:
        raise InvalidInput(f"{out} cannot be written: {error.strerror}", field="out", value=str(out)) from error


@contextmanager
def removed_at_the_end(staging: Path) -> Iterator[Path]:
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def move_into_place(result: Path, out: Path) -> None:
    """Rename `result` to `out`, in one step. Raises `InvalidInput` where that cannot be done."""
    try:
        result.rename(out)
    except OSError as error:
        message = f"the result cannot be moved to {out}: {error.strerror}"
        raise InvalidInput(message, field="out", value=str(out)) from error
