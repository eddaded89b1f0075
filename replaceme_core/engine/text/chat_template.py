"""Renders conversations through a model's chat template: a program that a stranger wrote.

transformers runs it in the sandbox of Jinja, in which it reaches no object of Python's. Here it gets limits too: of
time, by a timer whose signal interrupts it; of memory, by a limit of the process; and of the length of what it writes.
"""

import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from transformers import PreTrainedTokenizerBase

from replaceme_core.engine.text.document import Conversation
from replaceme_core.errors import BrokenModel
from replaceme_core.json_values import is_utf8, shorten

SECONDS = 5.0
"""For one conversation; usual templates take a thousandth of a second."""
MOST_BYTES = 2**30
"""Of memory while it runs."""
LONGEST_TEXT = 64 * 2**20
"""Characters: four times the longest row."""
_AGAIN_SECONDS = 0.2
_ADVICE = "fix the model's chat template, or set calibration.template to plain"
_STATM = Path("/proc/self/statm")


def render(tokenizer: PreTrainedTokenizerBase, conversation: Conversation, *, asks: bool = False) -> str:
    """The text of a conversation; with `asks`, the beginning of the answer follows it.

    Raises `BrokenModel` for a template that cannot be rendered, takes too long or writes too much.
    """
    try:
        with _limited_time(), _limited_memory():
            text = str(tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=asks))
    except _TooLong:
        raise _refused(f"takes more than {SECONDS:g} seconds for one conversation") from None
    except (MemoryError, OverflowError):
        raise _refused(f"needs more than {MOST_BYTES // 2**20:,} MB of memory for one conversation") from None
    except Exception as error:  # any: the template may raise what it likes
        raise _refused(f"cannot be rendered: {shorten(f'{type(error).__name__}: {error}', 300)}") from error
    if len(text) > LONGEST_TEXT:
        raise _refused(f"writes more than {LONGEST_TEXT:,} characters for one conversation")
    if not is_utf8(text):
        raise _refused("writes text that is not UTF-8")
    return text


def _refused(what: str) -> BrokenModel:
    return BrokenModel(f"the chat template {what}; {_ADVICE}", field="model", value="chat_template")


class _TooLong(BaseException):
    """Not an `Exception`, so that nothing in a template's way handles it as an error."""


@contextmanager
def _limited_time() -> Iterator[None]:
    """Raise `_TooLong` after `SECONDS`, again and again: one that is raised in a destructor is lost.

    It is processor time: a template cannot wait. Only the main thread, in which a runner works, is interrupted by
    signals; elsewhere there is no limit.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGPROF, _raise_too_long)
    signal.setitimer(signal.ITIMER_PROF, SECONDS, _AGAIN_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, handler)


def _raise_too_long(_number: int, _frame: FrameType | None) -> None:
    raise _TooLong


@contextmanager
def _limited_memory() -> Iterator[None]:
    """Let the process take `MOST_BYTES` more than it has; where the system does not say how much that is, no limit."""
    try:
        pages = int(_STATM.read_text().split()[0])
    except OSError:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = pages * resource.getpagesize() + MOST_BYTES
    bounds = [limit for limit in (wanted, soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(bounds), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
