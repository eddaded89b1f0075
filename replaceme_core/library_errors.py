"""What libraries raise for a stranger's files, as errors of ours. They raise nearly everything."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from replaceme_core.disk_space import is_out_of_space
from replaceme_core.errors import BrokenModel, OutOfMemory, ReplaceMeError
from replaceme_core.json_values import shorten

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
        raise BrokenModel(f"{what} ({shorten(text, _LONGEST)}); {fix}", field="model") from error


def _is_of_a_library(error: BaseException) -> bool:
    """Whether it was raised in code that is not ours: else it is a mistake of ours.

    A panic of a library in Rust is no `Exception`.
    """
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        return False
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    return place is None or not place.tb_frame.f_code.co_filename.startswith(_PACKAGE)


def _said(error: BaseException) -> str:
    """The text of an error in one line, without the stack of native code."""
    text = " ".join(_STACK.sub("", str(error)).split())
    return f"{text or type(error).__name__}"
