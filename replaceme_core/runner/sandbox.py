"""What a runner gets of the machine: its environment, from an allow-list, and its sandbox.

A sandbox is bubblewrap, a user of its own, or only what a process has. A mode counts as available if a small program
could be run in it; that is tried once, at the start. In bubblewrap a runner sees the system's libraries, Python, this
product, the files of its request and the accelerators, all read only; it writes to its own directories. It has no
network, no view of other processes, and an empty /tmp.
"""

import contextlib
import os
import pwd
import shutil
import site
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path

from replaceme_core.errors import InvalidInput
from replaceme_core.hardware import accelerators
from replaceme_core.runner import launcher
from replaceme_core.runner.messages import ModelRequest

_PASSED = frozenset(
    (
        *("PATH", "PYTHONPATH", "PYTHONSAFEPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "LD_PRELOAD", "TZ"),
        *("LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", "LC_MESSAGES", "LC_NUMERIC"),
        *("CUBLAS_WORKSPACE_CONFIG", "CUDA_CACHE_DISABLE", "CUDA_DEVICE_MAX_CONNECTIONS", "CUDA_DEVICE_ORDER"),
        *("CUDA_HOME", "CUDA_LAUNCH_BLOCKING", "CUDA_MODULE_LOADING", "CUDA_PATH", "CUDA_VISIBLE_DEVICES"),
        *("NVIDIA_DRIVER_CAPABILITIES", "NVIDIA_TF32_OVERRIDE", "NVIDIA_VISIBLE_DEVICES"),
        *("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"),
        *("GOMP_CPU_AFFINITY", "GOMP_SPINCOUNT", "KMP_AFFINITY", "KMP_BLOCKTIME", "KMP_HW_SUBSET"),
        *("OMP_DYNAMIC", "OMP_MAX_ACTIVE_LEVELS", "OMP_NUM_THREADS", "OMP_PLACES", "OMP_PROC_BIND", "OMP_SCHEDULE"),
        *("OMP_STACKSIZE", "OMP_THREAD_LIMIT", "OMP_WAIT_POLICY"),
        *("MKL_CBWR", "MKL_DYNAMIC", "MKL_ENABLE_INSTRUCTIONS", "MKL_NUM_THREADS", "MKL_THREADING_LAYER"),
        *("OPENBLAS_CORETYPE", "OPENBLAS_NUM_THREADS"),
        *("MALLOC_ARENA_MAX", "MALLOC_CONF", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"),
        *("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF", "PYTORCH_ENABLE_MPS_FALLBACK"),
        *("PYTORCH_MPS_HIGH_WATERMARK_RATIO", "PYTORCH_MPS_LOW_WATERMARK_RATIO"),
        *("PYTORCH_NO_CUDA_MEMORY_CACHING", "PYTORCH_NVML_BASED_CUDA_CHECK"),
    )
)
"""No prefixes: an operator's CUDA_REGISTRY_PASSWORD or LC_TOKEN is nobody else's business."""
PATH_LISTS = frozenset({"LD_LIBRARY_PATH", "PATH", "PYTHONPATH"})


def runner_environment(scratch: Path) -> dict[str, str]:
    """The environment of a runner, and nothing else.

    Caches, temporary files and the home directory lie under `scratch`, which is created. The Hugging Face libraries are
    set to work offline.
    """
    scratch = scratch.absolute()
    places = {
        "HOME": scratch / "home",
        "TMPDIR": scratch / "tmp",
        "HF_HOME": scratch / "huggingface",
    }
    for place in places.values():
        place.mkdir(parents=True, exist_ok=True)
    return {
        **{
            name: _with_absolute_entries(value) if name in PATH_LISTS else value
            for name, value in os.environ.items()
            if name in _PASSED
        },
        **{name: str(place) for name, place in places.items()},
        "PYTHONUSERBASE": site.getuserbase(),  # packages installed for the user lie under the home directory
        "PYTHONFAULTHANDLER": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _with_absolute_entries(paths: str) -> str:
    """A list such as PATH, whose relative and empty entries are taken from this process's working directory."""
    return os.pathsep.join(str(Path(entry).absolute()) for entry in paths.split(os.pathsep)) if paths else paths


PROGRAM = "bwrap"
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store", "/gnu/store", "/sys")
_CONFIGURATION = (
    "/etc/alternatives",
    "/etc/group",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/localtime",
    "/etc/nsswitch.conf",
    "/etc/passwd",
)
_CODE = ("replaceme_core", "worker")
_IN_CACHE = ("models--", "datasets--")


def bubblewrap_arguments(
    *, reads: Iterable[Path], writes: Iterable[Path], environment: Mapping[str, str], directory: Path
) -> list[str]:
    """All arguments of bubblewrap but the command. `directory` is the working directory, one of `writes`.

    What lies deeper is mounted later, so that a file to read stays read only in a directory to write to.
    """
    binds = dict.fromkeys((*_python(environment), *_existing(map(Path, _CONFIGURATION))), "--ro-bind")
    binds |= {place: "--ro-bind" for path in reads for place in places_of(path)}
    binds |= {place: "--bind" for path in writes for place in {path, Path(os.path.realpath(path))}}
    mounts = [word for place in sorted(binds, key=lambda path: len(path.parts)) for word in _mount(binds[place], place)]
    return [
        *("--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"),
        *("--die-with-parent", "--cap-drop", "ALL"),
        *(word for place in map(Path, _SYSTEM) for word in _system(place)),
        *("--proc", "/proc", "--dev", "/dev"),
        *(word for place in accelerators() for word in ("--dev-bind", str(place), str(place))),
        *("--tmpfs", "/tmp"),
        *mounts,
        *("--chdir", str(directory)),
        "--",
    ]


def places_of(path: Path) -> Iterator[Path]:
    """What has to be there so that `path` can be read: links in a cache of the Hub lead to blobs beside the snapshot.

    Other models of the cache are not there.
    """
    yield path
    real = Path(os.path.realpath(path))
    if real != path:
        yield real
    if real.parent.name == "snapshots" and real.parent.parent.name.startswith(_IN_CACHE):
        yield real.parent.parent
        shared = real.parent.parent.parent / "blobs"
        if shared.is_dir():
            yield shared


def _python(environment: Mapping[str, str]) -> Iterator[Path]:
    """Where Python, its libraries and this product are."""
    prefixes = (sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix, site.getuserbase())
    code = [Path(place) for name in _CODE for place in _locations(name)]
    listed = (environment.get(name, "").split(os.pathsep) for name in ("PYTHONPATH", "LD_LIBRARY_PATH"))
    roots = {place.parent for place in code}  # of a checkout only the code: an `.env` and data may lie beside it
    others = [Path(entry) for entries in listed for entry in entries if entry and Path(entry) not in roots]
    found = _existing([*map(Path, prefixes), *_links(Path(sys.executable)), *code, *others])
    for place in found:
        yield place
        yield Path(os.path.realpath(place))


def _links(path: Path) -> Iterator[Path]:
    """The directories through which the links of an executable lead."""
    while path.is_symlink():
        path = Path(os.path.normpath(path.parent / path.readlink()))
        yield path.parent


def _locations(name: str) -> Sequence[str]:
    found = find_spec(name)
    return [] if found is None else list(found.submodule_search_locations or ())


def _existing(places: Iterable[Path]) -> list[Path]:
    """Those that exist, without the root of the file system and what is mounted with the system anyway."""
    return [
        place
        for place in places
        if place.exists() and place != Path("/") and not any(place.is_relative_to(system) for system in _SYSTEM)
    ]


def _system(place: Path) -> list[str]:
    if place.is_symlink():
        return ["--symlink", str(place.readlink()), str(place)]
    return _mount("--ro-bind", place) if place.is_dir() else []


def _mount(how: str, place: Path) -> list[str]:
    return [how, str(place), str(place)]


SETTING, USER_SETTING = "REPLACEME_SANDBOX", "REPLACEME_SANDBOX_USER"
_TRY_SECONDS = 60.0
_TRIAL = (sys.executable, "-P", "-c", "import replaceme_core.runner.messages, worker; open('tried', 'w').close()")
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

    def command(
        self, command: Sequence[str], request: ModelRequest, *, scratch: Path, limits: Sequence[str] = ()
    ) -> list[str]:
        """The command that does `command` in the sandbox. Creates the directories that the request may write to.

        Where there is something to do for the launcher, its `limits` or its part of the sandbox, that comes first.
        """
        writes = [*map(Path, filter(None, request.writes)), scratch]
        options = [*limits]
        for place in writes if self.mode is not SandboxMode.NONE else ():
            place.mkdir(parents=True, exist_ok=True)
        if self.user is not None:
            for place in writes:
                _give(place, self.user)
            options += [*(["--no-network"] if self.no_network else []), "--user", f"{self.user[0]}:{self.user[1]}"]
        if self.mode is SandboxMode.BUBBLEWRAP:
            given = [Path(word).parent for word in command if Path(word).is_absolute() and Path(word).is_file()]
            reads = [*map(Path, filter(None, request.reads)), *given]
            environment = runner_environment(scratch)
            inside = bubblewrap_arguments(reads=reads, writes=writes, environment=environment, directory=scratch)
            command = [self.program, *inside, *command]
            # the signal goes to the whole group, and would end bubblewrap before the runner
            options.append("--keep-at-sigterm")
        if not options:
            return list(command)
        return [sys.executable, "-I", "-S", str(Path(launcher.__file__).absolute()), *options, "--", *command]

    def status_of(self, status: int) -> int:
        """The exit status of the command: bubblewrap reports a signal as 128 and its number."""
        return 128 - status if self.mode is SandboxMode.BUBBLEWRAP and 128 < status < 192 else status


NO_SANDBOX = Sandbox(reason="nothing was asked for")


def choose_sandbox(mode: SandboxMode, *, user: str | None, own_command: bool) -> Sandbox:
    """The sandbox of this mode, tried.

    With an `own_command` in place of the runner, `AUTO` adds none. Raises `InvalidInput` for a named mode that does not
    work.
    """
    if mode is SandboxMode.NONE or (mode is SandboxMode.AUTO and own_command):
        reason = "REPLACEME_RUNNER_COMMAND starts it" if own_command else f"{SETTING} is none"
        return Sandbox(reason=reason)
    reasons: list[str] = []
    tried: dict[SandboxMode, Callable[[], Sandbox | str]] = {
        SandboxMode.BUBBLEWRAP: _bubblewrap,
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


def _bubblewrap() -> Sandbox | str:
    """The sandbox, or why there is none."""
    program = shutil.which(PROGRAM)
    if program is None:
        return f"there is no program {PROGRAM} in PATH"
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
            done = subprocess.run(
                sandbox.command(_TRIAL, ModelRequest(model_directory=place), scratch=scratch),
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


def _give(place: Path, user: tuple[int, int]) -> None:
    """Make `user` the owner of a directory and of what is in it. Links are not followed, also if they appear now."""
    os.chown(place, *user, follow_symlinks=False)
    for _, directories, files, descriptor in os.fwalk(place):
        for name in (*directories, *files):
            with contextlib.suppress(FileNotFoundError):  # other runners work there
                os.chown(name, *user, dir_fd=descriptor, follow_symlinks=False)
