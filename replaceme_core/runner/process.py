"""A runner in a process of its own: start it, read its messages, end it with everything it started.

The runner receives one line of JSON on standard input, a pipe that stays open while the parent lives. It sends
`Message` lines on standard output. It leads its own session, so that a signal reaches all processes it started. The
supervisor and the command line both use this module.

Its environment has no tokens and no address of a database, and Python's sockets are refused (`worker/runner.py`). A
`Confinement` keeps native code too from files, processes and the network, as far as this machine can (`sandbox.py`),
and limits its memory.

On Linux the runner also has the kernel kill it when the *thread* that started it ends, so that thread has to live as
long as the runner.
"""

import codecs
import contextlib
import logging
import math
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Self

from pydantic import ValidationError

from replaceme_core.errors import OutOfMemory, ReplaceMeError, WorkerLost
from replaceme_core.runner.memory_limit import (
    SETTING,
    MemoryLimit,
    RunnerGroup,
    count_oom_kills,
    make_group,
    mapped_bytes,
)
from replaceme_core.runner.messages import FINAL_MESSAGES, LONGEST_LINE, MESSAGE, Message, ModelRequest
from replaceme_core.runner.sandbox import NO_SANDBOX, Sandbox, runner_environment
from replaceme_core.telemetry import in_context
from replaceme_core.wording import printable


@dataclass(frozen=True, kw_only=True)
class Confinement:
    """Without arguments: no sandbox, no limit of memory."""

    sandbox: Sandbox = NO_SANDBOX
    memory: MemoryLimit | None = None

    def for_plan(self, planned: Callable[[], int]) -> "Confinement":
        """The same for a job that is planned to take this many bytes of the host's memory."""
        if self.memory is None or self.memory.named:
            return self
        return replace(self, memory=self.memory.for_plan(planned()))


UNCONFINED = Confinement()


RUNNER_COMMAND = (sys.executable, "-P", "-m", "worker.runner")
"""`-P`: a module named `worker` in the working directory is not imported in place of ours."""
LONGEST_MESSAGE = 16 * 2**20  # bytes; a report with a line per candidate stays far below
STDERR_LINES = 200
_READ_BYTES = 4096
# after a space, where there is one: neither a word nor a secret, which would be shown, is cut in two
_PIECE = re.compile(rf".{{1,{LONGEST_LINE - 1}}}(?: |$)|.{{1,{LONGEST_LINE}}}", re.DOTALL)
_POLL_SECONDS = 0.5
_SETTLE_SECONDS = 1.0
_KILLED_SECONDS = 60.0
"""Time to end after SIGKILL, such as for freeing memory. A call of the kernel that hangs, such as on a disk that does
not answer, may have no end. The process then stays, and runs no more code."""
_ADVICE = "try a smaller model, fewer or shorter calibration samples, or a machine with more memory"
_NATIVE_OUT_OF_MEMORY = ("memory allocation of ", "std::bad_alloc")
"""The final line of native code that has no other way to say it."""

logger = logging.getLogger(__name__)


class RunnerBroke(ReplaceMeError):
    """The runner ended without a final message, or wrote a line that is not a message; code `internal_error`."""


class RunnerNeverBegan(RunnerBroke):
    """It ended before its first message, and so before it read anything of the job: the machine is at fault."""


class RunnerKilled(WorkerLost):
    """The runner was ended by a SIGKILL that we did not send, and memory had not run out: the job is not the cause."""


class PerhapsOutOfMemory(OutOfMemory):
    """The runner was ended by a SIGKILL that we did not send, perhaps because memory ran out: there are no counts."""


class Runner:
    """A started runner. As a context manager it ends the whole process group at the end, after an error too."""

    def __init__(
        self,
        command: Sequence[str],
        request: ModelRequest,
        *,
        scratch: Path,
        confinement: Confinement = UNCONFINED,
        on_line: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Start `command`, which `messages` sends `request`. Raises `OSError`.

        `on_line` gets each line that it writes on standard error, as it is, in a thread that reads them.

        The working directory is `scratch`, which is created and which the caller removes. So the runner finds neither
        the worker's `.env` nor modules of the directory in which the worker was started.
        """
        program, *arguments = command
        if os.sep in program:  # else it is looked up in PATH
            program = str(Path(program).absolute())
        scratch = scratch.absolute()
        environment = runner_environment(scratch)
        self._sandbox, self._limit = confinement.sandbox, confinement.memory
        self._group = None if self._limit is None else make_group(self._limit.size)
        self._oom_kills = count_oom_kills()
        try:
            self._process = subprocess.Popen(
                self._sandbox.command([program, *arguments], request, scratch=scratch, limits=self._limits(request)),
                cwd=scratch,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
                start_new_session=True,
            )
        except BaseException:
            _remove(self._group)
            raise
        self._on_line = on_line
        self._signals = threading.Lock()
        self._end_requested = False
        self._left_at = math.inf  # by the monotonic clock
        self.stderr_tail: deque[str] = deque(maxlen=STDERR_LINES)  # the last lines that it wrote on standard error
        assert self._process.stdin is not None
        assert self._process.stderr is not None
        keep_tail = in_context(partial(self._keep_tail, self._process.stderr))
        self._stderr_reader = threading.Thread(target=keep_tail, daemon=True)
        self._stderr_reader.start()
        os.set_blocking(self._process.stdin.fileno(), False)
        self._unsent = request.model_dump_json().encode() + b"\n"

    def _limits(self, request: ModelRequest) -> list[str]:
        """What the launcher does about the memory."""
        if self._group is not None:
            return ["--group", str(self._group.members)]
        if self._limit is not None and self._limit.of_process:
            return ["--data", str(self._limit.size + mapped_bytes(Path(request.model_directory)))]
        return []

    @property
    def pid(self) -> int:
        """Process id, and id of its process group."""
        return self._process.pid

    def end_of_log(self) -> tuple[str, ...]:
        """The last lines that it wrote on standard error; it is ended first, since only then are all of them read."""
        self.close()
        return tuple(self.stderr_tail)

    def messages(self) -> Iterator[Message]:
        """Send it the request; its messages, until it ends. The last one is one of `FINAL_MESSAGES`.

        Raises `RunnerBroke` for a line that is not a message, and when the runner ends without a final message
        (`RunnerNeverBegan`: without any); after a SIGKILL that we did not send, `OutOfMemory`, `PerhapsOutOfMemory` or
        `RunnerKilled`. One thread may read while another calls `terminate` or `kill`.
        """
        last: Message | None = None
        for line in self._lines():
            try:
                last = MESSAGE.validate_json(line)
            except ValidationError as error:
                raise RunnerBroke("the runner wrote a line that is not a message").because(repr(line[:200])) from error
            yield last
            if isinstance(last, FINAL_MESSAGES):
                return
        raise self._missing_final_message(has_begun=last is not None)

    def terminate(self, *, grace_seconds: float) -> None:
        """Send SIGTERM to the group, then SIGKILL if the runner still runs after `grace_seconds`."""
        self._send(signal.SIGTERM)
        if not self._ended(within=grace_seconds):
            self.kill()

    def kill(self) -> None:
        """Send SIGKILL to the group now."""
        self._send(signal.SIGKILL)
        self._left_at = min(self._left_at, time.monotonic() + _KILLED_SECONDS)

    def close(self) -> int:
        """Kill what is left of the group and close the pipes; returns the exit status.

        A process that SIGKILL does not end is left behind after a while: nobody can end it.
        """
        self.kill()
        if self._ended(within=self._left_at - time.monotonic()):
            with self._signals:
                status = self._process.wait()
        else:
            logger.error("process %s, a runner, has not ended after SIGKILL and is left behind", self.pid)
            status = -signal.SIGKILL
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        _remove(self._group)
        self._stderr_reader.join(timeout=_SETTLE_SECONDS)
        return status

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _keep_tail(self, stream: IO[bytes]) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        rest = ""
        with stream:
            while read := os.read(stream.fileno(), _READ_BYTES):
                *lines, rest = (rest + decoder.decode(read)).split("\n")
                rest = rest[rest.rfind("\r", 0, -1) + 1 :]  # however long a progress bar writes over itself
                if len(rest) > LONGEST_LINE:
                    *pieces, rest = _PIECE.findall(rest)
                    lines += pieces
                self._keep(lines)
        rest += decoder.decode(b"", final=True)
        self._keep([rest] if rest else [])

    def _keep(self, lines: Sequence[str]) -> None:
        for line in lines:
            for text in _PIECE.findall(line.rstrip().rpartition("\r")[2]) or [""]:
                self.stderr_tail.append(printable(text))
                self._on_line(text)

    def _lines(self) -> Iterator[bytes]:
        """Whole lines of its standard output, until end of file, or until it has ended and writes nothing more.

        One that SIGKILL does not end counts as ended. The second condition is for a descendant that left the group and
        still holds the pipe open. Meanwhile the request is sent: it may be larger than the pipe, and a runner that does
        not read it can still be ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request, output = self._process.stdin.fileno(), self._process.stdout.fileno()
        rest = b""
        ended_at: float | None = None
        while True:
            readable, writable, _ = select.select([output], [request] if self._unsent else [], [], _POLL_SECONDS)
            if writable:
                try:
                    self._unsent = self._unsent[os.write(request, self._unsent) :]
                except BrokenPipeError:  # it has ended, or reads no more
                    self._unsent = b""
            if readable:
                read = os.read(output, 65536)
                if not read:
                    return
                *lines, rest = (rest + read).split(b"\n")
                yield from lines
                if len(rest) > LONGEST_MESSAGE:
                    raise RunnerBroke("the runner wrote a line that is too long to be a message")
            elif self._ended() or time.monotonic() >= self._left_at:
                ended_at = ended_at or time.monotonic()
                if time.monotonic() - ended_at >= _SETTLE_SECONDS:
                    return

    def _ended(self, *, within: float = 0) -> bool:
        """Whether it has ended. It is not reaped, so that its id is not reused for another process meanwhile."""
        deadline = time.monotonic() + within
        while True:
            with self._signals:
                if self._process.returncode is not None:
                    return True
                options = os.WEXITED | os.WNOHANG | os.WNOWAIT
                if os.waitid(os.P_PID, self._process.pid, options) is not None:
                    return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.02)

    def _send(self, number: signal.Signals) -> None:
        with self._signals:
            self._end_requested = True
            if self._process.returncode is None:
                with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: EPERM for a zombie
                    os.killpg(self._process.pid, number)

    def _missing_final_message(self, *, has_begun: bool) -> ReplaceMeError:
        end_requested = self._end_requested
        if not self._ended(within=_SETTLE_SECONDS):
            return RunnerBroke("the runner closed its output without a final message")
        ran_out = self._group is not None and self._group.ran_out()
        status = self._sandbox.status_of(self.close())
        if status == -signal.SIGKILL and not end_requested:
            return self._out_of_limit() if ran_out else self._killed()
        end = f"signal {_name_of(-status)}" if status < 0 else f"exit status {status}"
        lines = self.stderr_tail
        last_line = next((line for line in reversed(lines) if line.strip()), "")
        if status == -signal.SIGABRT and any(sign in line for line in lines for sign in _NATIVE_OUT_OF_MEMORY):
            return (self._out_of_limit() if self._limit else OutOfMemory(f"out of memory; {_ADVICE}")).because(
                last_line
            )
        kind = RunnerBroke if has_begun else RunnerNeverBegan
        return kind(f"the runner ended with {end} and without a final message").because(last_line)

    def _out_of_limit(self) -> ReplaceMeError:
        assert self._limit is not None
        source = SETTING if self._limit.named else f"from its plan; {SETTING} sets another"
        limit = f"its limit of {self._limit.size / 2**30:.1f} GiB ({source})"
        return OutOfMemory(f"out of memory: the runner used more than {limit}; {_ADVICE}")

    def _killed(self) -> ReplaceMeError:
        match count_oom_kills().explain_a_kill_since(self._oom_kills):
            case True:
                return OutOfMemory(f"out of memory: the system ended the runner with SIGKILL; {_ADVICE}")
            case False:
                return RunnerKilled("the runner was ended with SIGKILL by another process; memory had not run out")
            case None:
                return PerhapsOutOfMemory(
                    f"the runner was ended with SIGKILL, probably because the system ran out of memory; {_ADVICE}"
                )


def _remove(group: RunnerGroup | None) -> None:
    if group is not None:
        group.remove()


def _name_of(number: int) -> str:
    return signal.Signals(number).name if number in signal.valid_signals() else str(number)
