"""Turns any error into a failure code and one sentence. Imports no torch."""

import errno
import re
from collections.abc import Iterator

from replaceme_core.errors import LONGEST_MESSAGE, InvalidInput, OutOfMemory, OutOfSpace, ReplaceMeError
from replaceme_core.json_values import shorten
from replaceme_core.library_errors import is_out_of_space
from replaceme_core.runner.messages import Failed

_PATH = re.compile(r"(?<![\w:/.])/(?:[^/\s'\"]+/)+[^/\s'\",;:)\]]*")
_ALLOCATION = re.compile(r"allocate ([\d.,]+ ?(?:bytes|[KMGTP]?i?B))")
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
            return Failed(code=each.code, message=shorten(without_paths(each.message), LONGEST_MESSAGE), field=field)
        if _is_out_of_memory(each):
            return Failed(code=OutOfMemory.code, message=f"out of memory{_amount(each)}")
        if is_out_of_space(each):
            return Failed(code=OutOfSpace.code, message="no space left on the device of the worker")
    kind = type(error).__name__
    return Failed(code=ReplaceMeError.code, message=f"a mistake of the service ({kind}); the worker's log says more")


def is_mistake(failed: Failed) -> bool:
    """Whether the service itself is at fault, so that a traceback helps. A full disk or memory explains itself."""
    return failed.code == ReplaceMeError.code


def without_paths(text: str) -> str:
    """`text` with the name of the file in place of each absolute path: a client may not learn where the worker has it.

    >>> without_paths("/srv/cache/models/config.json is not JSON; see https://example.org/a/b and org/name")
    'config.json is not JSON; see https://example.org/a/b and org/name'
    """
    return _PATH.sub(lambda found: found[0].rstrip("/").rpartition("/")[2], text)


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


def _amount(error: BaseException) -> str:
    """How much could not be allocated, where the error says so."""
    found = _ALLOCATION.search(str(error))
    return f": {found[1]} could not be allocated" if found else ""
