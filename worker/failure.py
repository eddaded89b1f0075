"""Turns any error into a failure code and one sentence. Used by runner and supervisor; torch is not imported."""

import errno
from collections.abc import Iterator

from replaceme_core.disk_space import is_out_of_space
from replaceme_core.errors import InvalidInput, OutOfMemory, OutOfSpace, ReplaceMeError
from replaceme_core.runner.messages import Failed

_NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "defaultcpuallocator: not enough memory",
    "cublas_status_alloc_failed",
    "(os error 12)",
)
_NO_MEMORY_CLASSES = ("MemoryError", "OutOfMemoryError", "AcceleratorOutOfMemoryError")


def describe(error: BaseException) -> Failed:
    """The failure to report. Where an error wraps others, the outermost that has a code of its own counts."""
    for each, is_cause in _chain(error):
        if isinstance(each, ReplaceMeError) and is_cause:
            field = each.field if isinstance(each, InvalidInput) else None
            return Failed(code=each.code, message=each.message, field=field)
        if _is_out_of_memory(each):
            return Failed(code=OutOfMemory.code, message=f"out of memory: {_first_line(each)}")
        if is_out_of_space(each):
            return Failed(code=OutOfSpace.code, message=f"no space left on the device: {_first_line(each)}")
    return Failed(code=ReplaceMeError.code, message=f"{type(error).__name__}: {_first_line(error)}")


def _chain(error: BaseException) -> Iterator[tuple[BaseException, bool]]:
    """The error and those behind it. True for the error itself and its causes (`raise ... from`), else false.

    An error of ours that was only being handled does not explain the bug that came after it. Memory or disk space that
    ran out does explain what follows.
    """
    seen: set[int] = set()
    each: BaseException | None = error
    is_cause = True
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each, is_cause
        is_cause = is_cause and each.__cause__ is not None
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)


def _is_out_of_memory(error: BaseException) -> bool:
    if any(kind.__name__ in _NO_MEMORY_CLASSES for kind in type(error).__mro__):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(phrase in text for phrase in _NO_MEMORY)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:500] if lines else type(error).__name__
