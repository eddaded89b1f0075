"""A runner in a process of its own: start it, read its messages, end it with everything it started.

The runner receives one line of JSON on standard input, a pipe that stays open while the parent lives. It sends
`Message` lines on standard output; some of them are answered with one line on standard input. It leads its own session,
so that a signal reaches all processes it started. The supervisor and the command line both use this module.

The runner is separated from secrets, not confined: its environment is made from an allow-list without tokens or the
address of a database, and Python's sockets are refused (`worker/runner.py`). But it runs as the same user, so that it
can read the files and, under `/proc`, the environment of the process that started it.

On Linux the runner also has the kernel kill it when the *thread* that started it ends, so that thread has to live as
long as the runner.
"""

import contextlib
import math
import os
import select
import signal
import site
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from pydantic import BaseModel, ValidationError

from replaceme_core.errors import OutOfMemory, ReplaceMeError, WorkerLost
from replaceme_core.runner.messages import FINAL_MESSAGES, MESSAGE, Message
from replaceme_core.runner.oom_kills import count_oom_kills

RUNNER_COMMAND = (sys.executable, "-P", "-m", "worker.runner")
"""`-P`: a module named `worker` in the working directory is not imported in place of ours."""
EVALUATE_FLAG = "--evaluate"
SHARDS_FLAG = "--shards"
LONGEST_MESSAGE = 16 * 2**20  # bytes; a report with a line per candidate stays far below
STDERR_LINES = 200
_POLL_SECONDS = 0.5
_SETTLE_SECONDS = 1.0

_PASSED = frozenset(
    {
        "CUBLAS_WORKSPACE_CONFIG",
        "HIP_VISIBLE_DEVICES",
        "LANG",
        "LANGUAGE",
        "LD_LIBRARY_PATH",
        "LD_PRELOAD",
        "PATH",
        "PYTHONPATH",
        "PYTHONSAFEPATH",
        "ROCR_VISIBLE_DEVICES",
        "TZ",
        "VIRTUAL_ENV",
    }
)
_PATH_LISTS = frozenset({"LD_LIBRARY_PATH", "PATH", "PYTHONPATH"})
_PASSED_PREFIXES = ("CUDA_", "GOMP_", "KMP_", "LC_", "MALLOC_", "MKL_", "NVIDIA_", "OMP_", "OPENBLAS_", "PYTORCH_")


def runner_environment(scratch: Path, *, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """The whole environment of a runner: the variables for hardware, language and libraries, and nothing else.

    Caches, temporary files and the home directory lie under `scratch`, which is created. The Hugging Face libraries are
    set to work offline. `base` is the environment to choose from, by default that of this process.
    """
    base = os.environ if base is None else base
    scratch = scratch.absolute()
    places = {
        "HOME": scratch / "home",
        "TMPDIR": scratch / "tmp",
        "HF_HOME": scratch / "huggingface",
        "HF_DATASETS_CACHE": scratch / "huggingface" / "datasets",
    }
    for place in places.values():
        place.mkdir(parents=True, exist_ok=True)
    return {
        **{
            name: _with_absolute_entries(value) if name in _PATH_LISTS else value
            for name, value in base.items()
            if name in _PASSED or name.startswith(_PASSED_PREFIXES)
        },
        **{name: str(place) for name, place in places.items()},
        "PYTHONUSERBASE": site.getuserbase(),  # packages installed for the user lie under the home directory
        "PYTHONFAULTHANDLER": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _with_absolute_entries(paths: str) -> str:
    """A list such as PATH, whose relative and empty entries are taken from this process's working directory."""
    return os.pathsep.join(str(Path(entry).absolute()) for entry in paths.split(os.pathsep)) if paths else paths


class RunnerBroke(ReplaceMeError):
    """The runner ended without a final message, or wrote a line that is not a message; code `internal_error`."""


class RunnerKilled(WorkerLost):
    """The runner was ended by a SIGKILL that we did not send, and memory had not run out: the job is not the cause."""


class PerhapsOutOfMemory(OutOfMemory):
    """The runner was ended by a SIGKILL that we did not send, perhaps because memory ran out: there are no counts."""


class Runner:
    """A started runner. As a context manager it ends the whole process group at the end, after an error too."""

    def __init__(
        self,
        command: Sequence[str],
        request: BaseModel,
        *,
        scratch: Path,
        on_line: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Start `command` and send it `request`. Raises `OSError`.

        `on_line` gets each line that it writes on standard error, in a thread that reads them.

        The working directory is `scratch`, which is created and which the caller removes. So the runner finds neither
        the worker's `.env` nor modules of the directory in which the worker was started.
        """
        program, *arguments = command
        if os.sep in program:  # else it is looked up in PATH
            program = str(Path(program).absolute())
        environment = runner_environment(scratch)
        self._oom_kills = count_oom_kills()
        self._process = subprocess.Popen(
            [program, *arguments],
            cwd=scratch,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
        self._on_line = on_line
        self._signals = threading.Lock()
        self._end_requested = False
        self._tail: deque[str] = deque(maxlen=STDERR_LINES)
        assert self._process.stdin is not None
        assert self._process.stderr is not None
        self._stderr_reader = threading.Thread(target=self._keep_tail, args=(self._process.stderr,), daemon=True)
        self._stderr_reader.start()
        with contextlib.suppress(BrokenPipeError):  # it ended at once: messages() raises
            self._process.stdin.write(request.model_dump_json().encode() + b"\n")
            self._process.stdin.flush()

    @property
    def pid(self) -> int:
        """Process id, and id of its process group."""
        return self._process.pid

    @property
    def stderr_tail(self) -> tuple[str, ...]:
        """The last lines that it wrote on standard error."""
        return tuple(self._tail)

    def messages(self) -> Iterator[Message]:
        """Its messages, until it ends. The last one is one of `FINAL_MESSAGES`.

        Raises `RunnerBroke` for a line that is not a message, and when the runner ends without a final message; after a
        SIGKILL that we did not send, `OutOfMemory`, `PerhapsOutOfMemory` or `RunnerKilled`. One thread may read while
        another calls `terminate` or `kill`.
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
        raise self._missing_final_message()

    def answer(self, message: BaseModel) -> None:
        """Send one line to its standard input, for a message that is answered. Nothing happens if it has ended."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(message.model_dump_json().encode() + b"\n")
            self._process.stdin.flush()

    def terminate(self, *, grace_seconds: float) -> None:
        """Send SIGTERM to the group, then SIGKILL if the runner still runs after `grace_seconds`."""
        self._send(signal.SIGTERM)
        if not self._ended(within=grace_seconds):
            self.kill()

    def kill(self) -> None:
        """Send SIGKILL to the group now."""
        self._send(signal.SIGKILL)

    def close(self) -> int:
        """Kill what is left of the group and close the pipes; returns the exit status."""
        self.kill()
        self._ended(within=math.inf)
        with self._signals:
            status = self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        self._stderr_reader.join(timeout=_SETTLE_SECONDS)
        return status

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _keep_tail(self, stream: IO[bytes]) -> None:
        with stream:
            while line := stream.readline(4096):
                text = line.decode(errors="replace").rstrip()
                self._tail.append(text)
                self._on_line(text)

    def _lines(self) -> Iterator[bytes]:
        """Whole lines of its standard output, until end of file, or until it has ended and writes nothing more.

        The second condition is for a descendant that left the group and still holds the pipe open.
        """
        assert self._process.stdout is not None
        output = self._process.stdout.fileno()
        rest = b""
        ended_at: float | None = None
        while True:
            readable, _, _ = select.select([output], [], [], _POLL_SECONDS)
            if readable:
                read = os.read(output, 65536)
                if not read:
                    return
                *lines, rest = (rest + read).split(b"\n")
                yield from lines
                if len(rest) > LONGEST_MESSAGE:
                    raise RunnerBroke("the runner wrote a line that is too long to be a message")
            elif self._ended():
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

    def _missing_final_message(self) -> ReplaceMeError:
        end_requested = self._end_requested
        if not self._ended(within=_SETTLE_SECONDS):
            return RunnerBroke("the runner closed its output without a final message")
        status = self.close()
        if status == -signal.SIGKILL and not end_requested:
            return self._killed()
        end = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        last_line = next((line for line in reversed(self._tail) if line.strip()), "")
        return RunnerBroke(f"the runner ended with {end} and without a final message").because(last_line)

    def _killed(self) -> ReplaceMeError:
        advice = "try a smaller model, fewer or shorter calibration samples, or a machine with more memory"
        match count_oom_kills().explain_a_kill_since(self._oom_kills):
            case True:
                return OutOfMemory(f"out of memory: the system ended the runner with SIGKILL; {advice}")
            case False:
                return RunnerKilled("the runner was ended with SIGKILL by another process; memory had not run out")
            case None:
                return PerhapsOutOfMemory(
                    f"the runner was ended with SIGKILL, probably because the system ran out of memory; {advice}"
                )
