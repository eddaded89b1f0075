"""Errors of the operating system and of libraries as errors of ours, and how much disk space is free.

Libraries raise nearly everything for a stranger's files.
"""

import errno
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb

from replaceme_core.errors import BrokenModel, OutOfMemory, OutOfSpace, ReplaceMeError
from replaceme_core.wording import shorten

_CODES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PHRASES = (
    "no space left",
    "disk quota exceeded",
    "file too large",
    "(os error 27)",
    "(os error 28)",
    "(os error 122)",
)
_NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "defaultcpuallocator: not enough memory",
    "cublas_status_alloc_failed",
    "(os error 12)",
)
_NO_MEMORY_CLASSES = ("MemoryError", "OutOfMemoryError", "AcceleratorOutOfMemoryError")


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
    """Whether the operating system reported a full disk, an exceeded quota, or a file longer than it may be."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _CODES
    text = str(error).lower()  # safetensors, Xet and others keep only the text of the system's error
    return any(phrase in text for phrase in _PHRASES)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on the host or on an accelerator; torch reports the former in the text alone."""
    if any(kind.__name__ in _NO_MEMORY_CLASSES for kind in type(error).__mro__):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(phrase in text for phrase in _NO_MEMORY)


_PACKAGE = str(Path(__file__).parent)
_LONGEST = 300
FIX = "use the files that were saved with the model"
_STACK = re.compile(r"\s*Exception raised from .*", re.DOTALL)


@contextmanager
def library_errors(what: str, *, fix: str = FIX, view: Path | None = None, name: str = "") -> Iterator[None]:
    """Raise `BrokenModel` that says `what` and how to `fix` it for any error of a library.

    It is `OutOfMemory` where memory has ended. The directory `view`, which was made for a library, is called `name` in
    the message.
    """
    try:
        yield
    except (ReplaceMeError, MemoryError):
        raise
    except BaseException as error:
        if not _is_of_a_library(error) or is_out_of_space(error):
            raise
        if "allocate" in str(error):  # on the host, only the text of the error says so
            raise OutOfMemory(f"there is not enough memory to load the model: {_said(error)}") from error
        text = _said(error) if view is None else _said(error).replace(str(view), name)
        raise BrokenModel(f"{what} ({shorten(text, _LONGEST)}); {fix}") from error


def _is_of_a_library(error: BaseException) -> bool:
    """Whether it was raised in code that is not ours: else it is a mistake of ours.

    A panic of a library in Rust is no `Exception`.
    """
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        return False
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    return not frames or not frames[-1].f_code.co_filename.startswith(_PACKAGE)


def _said(error: BaseException) -> str:
    """The text of an error in one line, without the stack of native code."""
    text = " ".join(_STACK.sub("", str(error)).split())
    return f"{text or type(error).__name__}"
