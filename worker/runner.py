"""`python -m worker.runner`: reads a request on standard input, runs the pipeline, writes messages on standard output.

Its environment has no token and no address of a database, and Python's sockets are refused. What native code can do
depends on the sandbox in which the worker has started it (docs/decisions/0032).

It ends when its parent ends (`processes/orphan_guard.py`). The real standard output carries messages only; what a
library prints goes to standard error.
"""

import gc
import os
import shutil
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

from replaceme_core.engine.model.allocator import reuse_freed_memory
from replaceme_core.errors import Cancelled, ReplaceMeError
from replaceme_core.json_values import json_safe
from replaceme_core.request.spec import CompressionSpec
from replaceme_core.runner.failure import describe, is_mistake
from replaceme_core.runner.messages import (
    Advanced,
    Evaluated,
    Failed,
    Measured,
    Message,
    Resolved,
    Stage,
    StageStarted,
)
from replaceme_core.runner.process import EVALUATE_FLAG
from replaceme_core.runner.requests import EvaluateRequest, RunnerRequest
from worker.processes.orphan_guard import start_orphan_guard

_NETWORK_EVENTS: Final = frozenset(
    {
        "socket.bind",
        "socket.connect",
        "socket.getaddrinfo",
        "socket.gethostbyaddr",
        "socket.gethostbyname",
        "socket.getnameinfo",
        "socket.sendmsg",
        "socket.sendto",
    }
)


class MessageWriter:
    """Writes messages to the real standard output, one line each. Nothing else writes there."""

    def __init__(self) -> None:
        """Keep the real standard output for messages: from now on file descriptor 1 is standard error."""
        sys.stdout.flush()
        self._descriptor = os.dup(1)
        os.dup2(2, 1)
        self._lock = threading.Lock()

    def send(self, message: Message) -> None:
        line = message.model_dump_json().encode() + b"\n"
        with self._lock:
            while line:
                line = line[os.write(self._descriptor, line) :]


class ProgressSender:
    """Implements `Progress` by sending messages. Metrics and fractions belong to the stage that began last."""

    def __init__(self, writer: MessageWriter) -> None:
        self._writer = writer
        self._stage = Stage.CALIBRATE

    def resolved(self, spec: CompressionSpec, *, expected: Mapping[Stage, float]) -> None:
        self._writer.send(Resolved(spec=spec, expected=dict(expected)))

    def stage(self, stage: Stage, *, resumed_from: Stage | None = None) -> None:
        self._stage = stage
        self._writer.send(StageStarted(stage=stage, resumed_from=resumed_from))

    def advance(self, fraction: float) -> None:
        self._writer.send(Advanced(stage=self._stage, fraction=fraction))

    def metric(
        self, name: str, value: float, unit: str, *, block: int | None = None, candidate: str | None = None
    ) -> None:
        self._writer.send(
            Measured(stage=self._stage, name=name, value=value, unit=unit, block=block, candidate=candidate)
        )


def block_network() -> None:
    """Make every attempt to reach another process over a socket raise `PermissionError`, in all Python libraries.

    This is no protection against malicious native code: that is up to the sandbox.
    """

    def refuse(event: str, _: tuple[object, ...]) -> None:
        if event in _NETWORK_EVENTS:
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


def compress(line: bytes, writer: MessageWriter) -> Message:
    """Run the pipeline. A run that does not finish leaves no output."""
    request = RunnerRequest.model_validate_json(line)
    output = Path(request.output_directory)
    is_new = not output.exists()
    try:
        # imported late, because torch takes seconds and gigabytes
        from replaceme_core.engine.pipeline import compress as run_pipeline

        gc.freeze()  # objects of the imports stay: collections between stages need not visit them

        finished = run_pipeline(request, ProgressSender(writer))
        report = finished.report
        if request.compare_with is not None:
            from replaceme_core.engine.results.tensor_comparison import compare_weights

            report = {**report, "comparison": compare_weights(Path(request.compare_with), output)}
        return finished.model_copy(update={"report": json_safe(report, name=str)})
    except BaseException:
        if is_new:
            shutil.rmtree(output, ignore_errors=True)
        raise


def evaluate(line: bytes) -> Message:
    """Measure a model on a text."""
    request = EvaluateRequest.model_validate_json(line)
    from replaceme_core.engine.evaluation.evaluate import evaluate as measure

    return Evaluated.model_validate({"report": json_safe(measure(request), name=str)})


def handle(line: bytes, writer: MessageWriter, arguments: list[str]) -> Message:
    """Do what the request and the flags ask for; returns the final message."""
    return evaluate(line) if EVALUATE_FLAG in arguments else compress(line, writer)


def main(arguments: list[str]) -> int:
    """Handle one request; returns the exit status: 1 after the message `failed`, else 0."""
    writer = MessageWriter()
    line = read_line()
    block_network()
    signal.signal(signal.SIGTERM, _raise_terminated)
    signal.signal(signal.SIGINT, _raise_terminated)
    reuse_freed_memory()
    last: Message
    try:
        last = handle(line, writer, arguments)
    except _Terminated:
        last = Failed(code=Cancelled.code, message="the runner was asked to stop")
    except BaseException as error:
        last = describe(error)
        if is_mistake(last) and not isinstance(error, ReplaceMeError):
            sys.excepthook(type(error), error, error.__traceback__)  # for the log: the message says little
        elif (explained := error.explained if isinstance(error, ReplaceMeError) else str(error)) != last.message:
            sys.stderr.write(f"{explained}\n")
    for stream in (sys.stdout, sys.stderr):  # after the final message the parent may end this process at any moment
        stream.flush()
    writer.send(last)
    return 1 if isinstance(last, Failed) else 0


def run() -> NoReturn:
    """The main function of the process."""
    start_orphan_guard()
    os._exit(main(sys.argv[1:]))  # threads and exit handlers of libraries must not delay the end


if __name__ == "__main__":
    run()
