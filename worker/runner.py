"""`python -m worker.runner`: reads a request on standard input, runs the pipeline, writes messages on standard output.

Its environment has no token and no address of a database, and Python's sockets are refused. What native code can do
depends on the sandbox in which the worker has started it (docs/decisions/0005). The real standard output carries
messages only; what a library prints goes to standard error.

It ends when its parent ends. A small process beside it, the guard, watches two pipes and reads from neither. One is the
runner's standard input, which the parent holds open while it lives; the runner holds the other. When either closes, the
guard sends SIGKILL to the whole process group. The guard is a process and not a thread, because a library that holds
the interpreter's lock would block a thread, and because the kernel, where it kills the runner, kills only the runner.
"""

import ctypes
import gc
import os
import select
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

from replaceme_core.engine.model.allocator import reuse_freed_memory
from replaceme_core.errors import Cancelled, ReplaceMeError
from replaceme_core.runner.messages import (
    REQUEST,
    Advanced,
    EvaluateRequest,
    Failed,
    Finished,
    Message,
    Progress,
    RunnerRequest,
    Stage,
    describe,
    is_mistake,
)
from replaceme_core.wording import json_safe

_PR_SET_PDEATHSIG: Final = 1
_OUTSIDE: Final = 0
"""The process group in a sandbox that has its own process ids, where the group's leader has none."""


def start_orphan_guard() -> None:
    """Fork the guard; returns in the runner. Call it first, while there is only one thread."""
    parent = os.getppid()
    if os.getpgrp() not in (os.getpid(), _OUTSIDE):
        os.setpgid(0, 0)  # started by hand: the group that is killed must be the runner's own
    watched, _held = os.pipe()
    runner = os.getpid()
    if os.fork() == 0:
        _watch(runner, watched, _held)
    os.close(watched)
    _end_with_parent(parent)


def _watch(runner: int, watched: int, held: int) -> NoReturn:
    """The main function of the guard."""
    try:
        os.close(held)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        devnull = os.open(os.devnull, os.O_RDWR)
        os.dup2(devnull, 1)  # the parent takes the end of standard output for the end of messages
        os.dup2(devnull, 2)
        poll = select.poll()
        poll.register(0, 0)  # no events requested: a hang-up is always reported
        poll.register(watched, 0)
        poll.poll()
    finally:
        if os.getpgrp() == runner:
            os.killpg(runner, signal.SIGKILL)
        elif os.getpgrp() == _OUTSIDE:
            os.kill(-1, signal.SIGKILL)  # all processes of the sandbox
        os._exit(0)


def _end_with_parent(parent: int) -> None:
    """On Linux, have the kernel kill this process when the thread that started it ends: sooner than the guard can."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # the parent ended before the call
        os.kill(os.getpid(), signal.SIGKILL)


_LOCAL_EVENTS: Final = ("__new__", "gethostname", "getservbyname", "getservbyport")
"""Of sockets, that reach nobody."""


class MessageWriter:
    """Writes messages to the real standard output, one line each. Nothing else writes there."""

    def __init__(self) -> None:
        """Keep the real standard output for messages: from now on file descriptor 1 is standard error."""
        sys.stdout.flush()
        self._descriptor = os.dup(1)
        os.dup2(2, 1)
        self._lock = threading.Lock()
        self.has_begun = False

    def begin(self) -> None:
        """The first message: all libraries are there. What fails before it is the machine's fault, not the job's."""
        self.has_begun = True
        self.send(Advanced(stage=Stage.CALIBRATE, fraction=0.0))

    def send(self, message: Message) -> None:
        line = message.model_dump_json().encode() + b"\n"
        with self._lock:
            while line:
                line = line[os.write(self._descriptor, line) :]


def block_network() -> None:
    """Make every attempt to reach another process over a socket raise `PermissionError`, in all Python libraries.

    This is no protection against malicious native code: that is up to the sandbox.
    """

    def refuse(event: str, _: tuple[object, ...]) -> None:
        if event.startswith("socket.") and event.removeprefix("socket.") not in _LOCAL_EVENTS:
            raise PermissionError(f"the runner has no network ({event})")

    sys.addaudithook(refuse)


def read_line() -> bytes:
    """The line of standard input with the request. The pipe stays open after it."""
    line = sys.stdin.buffer.readline()
    if not line.endswith(b"\n"):
        raise EOFError("standard input ended before the line was complete")
    return line


def _raise_terminated(_number: int, _frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second signal must not interrupt the cleaning up
    raise _Terminated


class _Terminated(BaseException):
    """SIGTERM or SIGINT. Not an `Exception`, so that no library handles it as an error."""


@contextmanager
def _without_collections() -> Iterator[None]:
    """Around imports, whose objects stay: no collection visits them, now or later. A sixth of their time was that."""
    gc.disable()
    yield
    gc.freeze()
    gc.enable()


def compress(request: RunnerRequest, writer: MessageWriter) -> Message:
    """Run the pipeline. A run that does not finish leaves no output."""
    output = Path(request.output_directory)
    is_new = not output.exists()
    with _without_collections():  # imported late, because torch takes seconds and gigabytes
        from replaceme_core.engine.pipeline import compress as run_pipeline

    writer.begin()
    try:
        finished = run_pipeline(request, Progress(writer.send))
        report = finished.report
        if request.compare_with is not None:
            from replaceme_core.engine.results.provenance import compare_weights

            report = {**report, "comparison": compare_weights(Path(request.compare_with), output)}
        return finished.model_copy(update={"report": json_safe(report, name=str)})
    except BaseException:
        if is_new:
            shutil.rmtree(output, ignore_errors=True)
        raise


def evaluate(request: EvaluateRequest) -> Message:
    """Measure a model on a text."""
    with _without_collections():
        from replaceme_core.engine.evaluation.evaluate import evaluate as measure

    return Finished.model_validate({"report": json_safe(measure(request), name=str)})


def main() -> int:
    """Handle one request; returns the exit status: 1 after the message `failed`, else 0.

    Raises what goes wrong before a job has begun.
    """
    writer = MessageWriter()
    request = REQUEST.validate_json(read_line())
    block_network()
    signal.signal(signal.SIGTERM, _raise_terminated)
    signal.signal(signal.SIGINT, _raise_terminated)
    reuse_freed_memory()
    last: Message
    try:
        last = evaluate(request) if isinstance(request, EvaluateRequest) else compress(request, writer)
    except _Terminated:
        last = Failed(code=Cancelled.code, message="the runner was asked to stop")
    except BaseException as error:
        last = describe(error)
        if is_mistake(last) and isinstance(request, RunnerRequest) and not writer.has_begun:
            raise
        if is_mistake(last) and not isinstance(error, ReplaceMeError):
            sys.excepthook(type(error), error, error.__traceback__)  # for the log: the message says little
        elif (explained := error.explained if isinstance(error, ReplaceMeError) else str(error)) != last.message:
            sys.stderr.write(f"{explained}\n")
    for number in (signal.SIGTERM, signal.SIGINT):  # there is nothing left to stop
        signal.signal(number, signal.SIG_IGN)
    for stream in (sys.stdout, sys.stderr):  # after the final message the parent may end this process at any moment
        stream.flush()
    writer.send(last)
    return 1 if isinstance(last, Failed) else 0


def run() -> NoReturn:
    """The main function of the process."""
    start_orphan_guard()
    os._exit(main())  # threads and exit handlers of libraries must not delay the end


if __name__ == "__main__":
    run()
