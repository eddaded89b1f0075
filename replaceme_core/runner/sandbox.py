"""What keeps a runner from the rest of the machine: bubblewrap, a user of its own, or only what a process has.

A mode counts as available if a small program could be run in it; that is tried once, at the start.
"""

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from replaceme_core.errors import InvalidInput
from replaceme_core.runner import bubblewrap, launcher
from replaceme_core.runner.environment import runner_environment
from replaceme_core.runner.requests import ModelRequest

SETTING, USER_SETTING = "REPLACEME_SANDBOX", "REPLACEME_SANDBOX_USER"
_TRY_SECONDS = 60.0
_TRIAL = (sys.executable, "-P", "-c", "import replaceme_core.runner.requests, worker; open('tried', 'w').close()")
"""The interpreter and the product are found, and the directory can be written to."""


class SandboxMode(StrEnum):
    """`AUTO` is the first one of the others that works here."""

    AUTO = "auto"
    BUBBLEWRAP = "bubblewrap"
    USER = "user"
    NONE = "none"


@dataclass(frozen=True, kw_only=True)
class Sandbox:
    """How runners are started. Choose one with `choose_sandbox`."""

    mode: SandboxMode = SandboxMode.NONE
    program: str = ""
    """Of bubblewrap."""
    user: tuple[int, int] | None = None
    """Of the mode `user`: the ids of the user and its group."""
    no_network: bool = False
    """In the mode `user`: whether a runner gets a network without devices."""
    reason: str = ""
    """Why it is no better one, or for `none` that it was asked for."""

    def describe(self) -> str:
        """In words, for the log."""
        match self.mode:
            case SandboxMode.BUBBLEWRAP:
                return "bubblewrap (no network, its own files and processes only)"
            case SandboxMode.USER:
                network = "no network" if self.no_network else "network open to native code"
                return f"user (another user id, {network}, sees other processes)"
            case _:
                return f"none (the worker's user, files and network are open to native code; {self.reason})"

    def launcher_options(self) -> list[str]:
        if self.mode is SandboxMode.BUBBLEWRAP:
            return ["--keep-at-sigterm"]  # it goes to the whole group, and would end bubblewrap before the runner
        if self.user is None:
            return []
        return [*(["--no-network"] if self.no_network else []), "--user", f"{self.user[0]}:{self.user[1]}"]

    def command(self, command: Sequence[str], request: ModelRequest, *, scratch: Path) -> list[str]:
        """The command that does `command` in the sandbox. Creates the directories that the request may write to."""
        writes = [Path(path) for path in request.writes] + [scratch]
        if self.mode is SandboxMode.NONE:
            return list(command)
        for place in writes:
            place.mkdir(parents=True, exist_ok=True)
        if self.user is not None:
            for place in writes:
                _give(place, self.user)
            return list(command)
        given = [Path(word).parent for word in command if Path(word).is_absolute() and Path(word).is_file()]
        reads = [*(Path(path) for path in request.reads), *given]
        environment = runner_environment(scratch)
        options = bubblewrap.arguments(reads=reads, writes=writes, environment=environment, directory=scratch)
        return [self.program, *options, *command]

    def status_of(self, status: int) -> int:
        """The exit status of the command: bubblewrap reports a signal as 128 and its number."""
        return 128 - status if self.mode is SandboxMode.BUBBLEWRAP and 128 < status < 192 else status


NO_SANDBOX = Sandbox(reason="nothing was asked for")


def choose_sandbox(mode: SandboxMode, *, user: str | None, own_command: bool, program: str | None = None) -> Sandbox:
    """The sandbox of this mode, tried. `program` is bubblewrap's, by default that in PATH.

    With an `own_command` in place of the runner, `AUTO` adds none. Raises `InvalidInput` for a named mode that does not
    work.
    """
    if mode is SandboxMode.NONE or (mode is SandboxMode.AUTO and own_command):
        reason = "REPLACEME_RUNNER_COMMAND starts it" if own_command else f"{SETTING} is none"
        return Sandbox(reason=reason)
    reasons: list[str] = []
    tried: dict[SandboxMode, Callable[[], Sandbox | str]] = {
        SandboxMode.BUBBLEWRAP: lambda: _bubblewrap(program),
        SandboxMode.USER: lambda: _user(user),
    }
    for each, make in tried.items():
        if mode in (SandboxMode.AUTO, each):
            found = make()
            if isinstance(found, Sandbox):
                return found
            reasons.append(f"{each} does not work: {found}")
    if mode is not SandboxMode.AUTO:
        raise InvalidInput(
            f"{SETTING}={mode}, but {reasons[0]}; fix that, or set {SETTING} to auto or none",
            field="sandbox",
            value=mode,
        )
    return Sandbox(reason="; ".join(reasons))


def _bubblewrap(program: str | None) -> Sandbox | str:
    """The sandbox, or why there is none."""
    program = program or shutil.which(bubblewrap.PROGRAM)
    if program is None:
        return f"there is no program {bubblewrap.PROGRAM} in PATH"
    found = Sandbox(mode=SandboxMode.BUBBLEWRAP, program=program)
    return _try(found) or found


def _user(name: str | None) -> Sandbox | str:
    if name is None:
        return f"{USER_SETTING} names no user"
    if os.geteuid() != 0:
        return "this process is not root, so it cannot change its user"
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return f"there is no user {name!r} ({USER_SETTING})"
    if entry.pw_uid == 0:
        return f"{name!r} is root itself ({USER_SETTING})"
    user = (entry.pw_uid, entry.pw_gid)
    without_network = Sandbox(mode=SandboxMode.USER, user=user, no_network=True)
    if _try(without_network) is None:
        return without_network
    found = Sandbox(mode=SandboxMode.USER, user=user)
    return _try(found) or found


def _try(sandbox: Sandbox) -> str | None:
    """Why a small program cannot be run in it; `None` if it can."""
    with tempfile.TemporaryDirectory(prefix="replaceme-sandbox-") as place:
        if sandbox.user is not None:
            Path(place).chmod(0o711)
        scratch = Path(place) / "scratch"
        environment = runner_environment(scratch)
        try:
            command = sandbox.command(_TRIAL, _Nothing(model_directory=place), scratch=scratch)
            done = subprocess.run(
                launched(command, sandbox.launcher_options()),
                cwd=scratch,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_TRY_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        if done.returncode == 0 and (scratch / "tried").exists():
            return None
        said = done.stderr.decode(errors="replace").strip().splitlines()
        return said[-1] if said else f"it ends with exit status {done.returncode}"


def launched(command: Sequence[str], options: Sequence[str]) -> list[str]:
    """The command behind the launcher, if there is anything for it to do."""
    if not options:
        return list(command)
    return [sys.executable, "-I", "-S", str(Path(launcher.__file__).absolute()), *options, "--", *command]


class _Nothing(ModelRequest):
    """Reads an empty directory."""


def _give(place: Path, user: tuple[int, int]) -> None:
    """Make `user` the owner of a directory and of what is in it. Links are not followed."""
    os.chown(place, *user, follow_symlinks=False)
    for inside in _walk(place):
        os.chown(inside, *user, follow_symlinks=False)


def _walk(place: Path) -> Iterator[Path]:
    for directory, names, files in os.walk(place):
        for name in (*names, *files):
            yield Path(directory) / name
