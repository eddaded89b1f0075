"""How much disk space is free, and which errors mean that it ran out. Imports the standard library and `errors`."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from replaceme_core.errors import OutOfSpace

_CODES = (errno.ENOSPC, errno.EDQUOT)
_PHRASES = ("no space left", "disk quota exceeded", "(os error 28)", "(os error 122)")


def free_space(directory: Path) -> int:
    """Bytes that are free on the device of `directory`, which need not exist yet. Raises `OSError`."""
    while not directory.exists():
        directory = directory.parent
    return shutil.disk_usage(directory).free


def require_space(directory: Path, needed: int, *, purpose: str) -> None:
    """Raise `OutOfSpace` if fewer than `needed` bytes are free for `directory`. `purpose` starts the message."""
    free = free_space(directory)
    if needed > free:
        raise OutOfSpace(f"{purpose} takes at least {needed:,} bytes, {free:,} are free").because(f"under {directory}")


def is_out_of_space(error: BaseException) -> bool:
    """Whether the operating system reported a full disk or an exceeded quota."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _CODES
    text = str(error).lower()  # safetensors, Xet and others keep only the text of the system's error
    return any(phrase in text for phrase in _PHRASES)


@contextmanager
def out_of_space_errors(action: str) -> Iterator[None]:
    """Turn an `OSError` for a full disk into `OutOfSpace`; `action` completes "no space left ... while"."""
    try:
        yield
    except OSError as error:
        if is_out_of_space(error):
            raise OutOfSpace(f"no space left on the device while {action}") from error
        raise
