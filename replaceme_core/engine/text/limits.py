"""Runs what a stranger wrote within limits of time and memory: a chat template, and the first use of a tokenizer.

transformers renders a template in the sandbox of Jinja, in which it reaches no object of Python's. It is interrupted by
the signal of a timer; memory and the length of what it writes are limited too. A tokenizer is native code, which no
signal handler of Python's interrupts, and its normaliser may turn one letter into a gigabyte. So its first use happens
in a fork, which the system ends when it exceeds its limits.
"""

import faulthandler
import gc
import os
import resource
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from types import FrameType

from transformers import PreTrainedTokenizerBase

from replaceme_core.engine.text.documents import Conversation
from replaceme_core.errors import BrokenModel
from replaceme_core.wording import is_utf8, shorten

TEMPLATE_SECONDS = 5.0
"""For one conversation; usual templates take a thousandth of a second."""
TEMPLATE_BYTES = 2**30
"""Of memory while it runs."""
LONGEST_TEXT = 64 * 2**20
"""Characters: four times the longest row."""
_AGAIN_SECONDS = 0.2
TRIAL_SECONDS = 30.0
"""Of processor time, for the first use of a tokenizer."""
TRIAL_WALL_SECONDS = 600.0
TRIAL_BYTES = 4 * 2**30
"""More than the process has."""
_ADVICE = "fix the template, or set calibration.template to plain and calibration.self_generated to 0"
"""Of both: the built-in general text, and what the model writes itself, go through the template whatever it is."""
_STATM = Path("/proc/self/statm")


def render(tokenizer: PreTrainedTokenizerBase, conversation: Conversation, *, asks: bool = False) -> str:
    """The text of a conversation; with `asks`, the beginning of the answer follows it.

    Raises `BrokenModel` for a template that cannot be rendered, takes too long or writes too much.
    """
    try:
        with _limited_time(), _limited_memory():
            text = str(tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=asks))
    except _TooLong:
        raise _refused(f"takes more than {TEMPLATE_SECONDS:g} seconds for one conversation") from None
    except (MemoryError, OverflowError):
        raise _refused(f"needs more than {TEMPLATE_BYTES // 2**20:,} MB of memory for one conversation") from None
    except Exception as error:  # any: the template may raise what it likes
        raise _refused(f"cannot be rendered: {shorten(f'{type(error).__name__}: {error}', 300)}") from error
    if len(text) > LONGEST_TEXT:
        raise _refused(f"writes more than {LONGEST_TEXT:,} characters for one conversation")
    if not is_utf8(text):
        raise _refused("writes text that is not UTF-8")
    return text


def _refused(what: str) -> BrokenModel:
    return BrokenModel(f"the chat template {what}; {_ADVICE}", value="chat_template")


class _TooLong(BaseException):
    """Not an `Exception`, so that nothing in a template's way handles it as an error."""


@contextmanager
def _limited_time() -> Iterator[None]:
    """Raise `_TooLong` after `TEMPLATE_SECONDS`, again and again: one that is raised in a destructor is lost.

    It is processor time: a template cannot wait. Only the main thread, in which a runner works, is interrupted by
    signals; elsewhere there is no limit.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGPROF, _raise_too_long)
    signal.setitimer(signal.ITIMER_PROF, TEMPLATE_SECONDS, _AGAIN_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, handler)


def _raise_too_long(_number: int, _frame: FrameType | None) -> None:
    raise _TooLong


@contextmanager
def _limited_memory() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_AS)
    _limit_memory(TEMPLATE_BYTES)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _limit_memory(more: int) -> None:
    """Let the process take `more` bytes than it has; where the system does not tell how much that is, no limit."""
    if _STATM.exists():
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        wanted = int(_STATM.read_text().split()[0]) * resource.getpagesize() + more
        bounds = [limit for limit in (wanted, soft, hard) if limit != resource.RLIM_INFINITY]
        resource.setrlimit(resource.RLIMIT_AS, (min(bounds), hard))


def ends_badly(call: Callable[[], object]) -> str | None:
    """How a process that does `call` is ended: "took more than 30 seconds"; `None` if it ends by itself.

    An exception is no bad end: it comes again where the call is made in earnest.
    """
    gc.collect()  # so that the fork has little to copy
    process = get_context("fork").Process(target=_limited, args=(call,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads: the fork uses none of them, and ends at once
        process.start()
    process.join(TRIAL_WALL_SECONDS)
    status = process.exitcode
    process.kill()
    process.join()
    if status is None or status == -signal.SIGPROF:
        return f"took more than {TRIAL_SECONDS:g} seconds"
    if status < 0:
        return f"needed more than {TRIAL_BYTES // 2**30} GiB of memory, or crashed (signal {-status})"
    return None


def _limited(call: Callable[[], object]) -> None:
    faulthandler.disable()  # how it ends is said in one line
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the threads that a library had are not in the fork
    devnull = os.open(os.devnull, os.O_RDWR)
    for stream in (1, 2):
        os.dup2(devnull, stream)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, TRIAL_SECONDS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _limit_memory(TRIAL_BYTES)
    call()
