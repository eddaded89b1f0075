"""`python -m worker.runner`: one request on standard input, the pipeline, JSON lines of progress on standard output.

Has no network, no database and no token, and does not outlive its parent (`guard.py`). The real standard output carries
messages only; whatever a library prints goes to standard error.
"""

import gc
import os
import shutil
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

from replaceme_core.errors import Cancelled, ReplaceMeError
from replaceme_core.json_values import json_safe
from replaceme_core.models.allocator import reuse_freed_memory
from replaceme_core.runner.messages import (
    Advanced,
    Evaluated,
    EvaluateRequest,
    Failed,
    Measured,
    Message,
    Resolved,
    RunnerRequest,
    ShardAnswer,
    ShardRequest,
    ShardsPlanned,
    ShardWanted,
    Stage,
    StageStarted,
)
from replaceme_core.runner.process import EVALUATE_FLAG, SHARDS_FLAG
from replaceme_core.spec import CompressionSpec
from worker.failure import describe
from worker.processes.orphan_guard import stand_guard

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


class Outlet:
    """The only writer of the real standard output; one line for each message."""

    def __init__(self) -> None:
        """Take the real standard output away from everybody else: file descriptor 1 is standard error from now on."""
        sys.stdout.flush()
        self._descriptor = os.dup(1)
        os.dup2(2, 1)
        self._lock = threading.Lock()

    def send(self, message: Message) -> None:
        line = message.model_dump_json().encode() + b"\n"
        with self._lock:
            while line:
                line = line[os.write(self._descriptor, line) :]


class PipedProgress:
    """`Progress` as messages. Metrics and fractions belong to the stage that was begun last."""

    def __init__(self, outlet: Outlet) -> None:
        self._outlet = outlet
        self._stage = Stage.CALIBRATE

    def resolved(self, spec: CompressionSpec) -> None:
        self._outlet.send(Resolved(spec=spec))

    def stage(self, stage: Stage, *, resumed_from: Stage | None = None) -> None:
        self._stage = stage
        self._outlet.send(StageStarted(stage=stage, resumed_from=resumed_from))

    def advance(self, fraction: float) -> None:
        self._outlet.send(Advanced(stage=self._stage, fraction=fraction))

    def metric(
        self, name: str, value: float, unit: str, *, block: int | None = None, candidate: str | None = None
    ) -> None:
        self._outlet.send(
            Measured(stage=self._stage, name=name, value=value, unit=unit, block=block, candidate=candidate)
        )


class PipedExchange:
    """`Exchange` as messages, each with one line of answer on standard input."""

    def __init__(self, outlet: Outlet) -> None:
        self._outlet = outlet

    def plan(self, plan: str, *, count: int, done: list[int]) -> None:
        self._ask(ShardsPlanned(plan=plan, count=count, done=done))

    def next(self, finished: int | None) -> ShardAnswer:
        return self._ask(ShardWanted(finished=finished))

    def _ask(self, question: ShardsPlanned | ShardWanted) -> ShardAnswer:
        self._outlet.send(question)
        return ShardAnswer.model_validate_json(read_line())


def refuse_network() -> None:
    """Every attempt to reach another process over a socket raises, in whatever library it is made.

    This stops code that means well. Against native code that does not, run the runner in a container or a sandbox.
    """

    def refuse(event: str, _: tuple[object, ...]) -> None:
        if event in _NETWORK_EVENTS:
            raise PermissionError(f"the runner has no network ({event})")

    sys.addaudithook(refuse)


def read_line() -> bytes:
    """The next line of standard input, byte by byte, so that nothing of what follows is taken from the life line."""
    line = bytearray()
    while not line.endswith(b"\n"):
        piece = os.read(0, 1)
        if not piece:
            raise EOFError("standard input ended before the line was complete")
        line += piece
    return bytes(line)


def stop(_number: int, _frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not cut the tidying short
    raise _Terminated


class _Terminated(BaseException):
    """SIGTERM; not an `Exception`, so that no library takes it for an error that it may handle."""


def compress(line: bytes, outlet: Outlet) -> Message:
    """The pipeline. A run that did not finish leaves no output."""
    request = RunnerRequest.model_validate_json(line)
    output = Path(request.output_directory)
    ours = not output.exists()
    try:
        # torch takes seconds and gigabytes: not before there is something to do
        from replaceme_core.pipeline import compress as run_pipeline

        gc.freeze()  # what the imports left stays: no collection between stages needs to go through it again

        finished = run_pipeline(request, PipedProgress(outlet), PipedExchange(outlet))
        return finished.model_copy(update={"report": json_safe(finished.report, name=str)})
    except BaseException:
        if ours:
            shutil.rmtree(output, ignore_errors=True)
        raise


def evaluate(line: bytes) -> Message:
    request = EvaluateRequest.model_validate_json(line)
    from replaceme_core.evaluation.evaluate import evaluate as measure

    return Evaluated.model_validate({"report": json_safe(measure(request), name=str)})


def share(line: bytes, outlet: Outlet) -> Message:
    """Shards of another worker's job."""
    request = ShardRequest.model_validate_json(line)
    from replaceme_core.sharding.compute_shards import compute_shards

    return compute_shards(request, PipedExchange(outlet))


def carry_out(line: bytes, outlet: Outlet, arguments: list[str]) -> Message:
    """What the request is for: its last word."""
    if EVALUATE_FLAG in arguments:
        return evaluate(line)
    return share(line, outlet) if SHARDS_FLAG in arguments else compress(line, outlet)


def main(arguments: list[str]) -> int:
    """Exit status: 1 after `failed`, 0 after any other last word."""
    outlet = Outlet()
    line = read_line()
    refuse_network()
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    reuse_freed_memory()
    last: Message
    try:
        last = carry_out(line, outlet, arguments)
    except _Terminated:
        last = Failed(code=Cancelled.code, message="the runner was asked to stop")
    except BaseException as error:
        last = describe(error)
        if not isinstance(error, ReplaceMeError):
            sys.excepthook(type(error), error, error.__traceback__)  # for the log; the message carries one line
    for stream in (sys.stdout, sys.stderr):  # after the last word the parent may end this process at any moment
        stream.flush()
    outlet.send(last)
    return 1 if isinstance(last, Failed) else 0


def run() -> NoReturn:
    """The whole life of the process."""
    stand_guard()
    os._exit(main(sys.argv[1:]))  # a library's threads or exit handlers must not hold up what is done


if __name__ == "__main__":
    run()
