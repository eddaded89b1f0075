"""The arguments with which bubblewrap starts a runner: what it sees, and what it may write to.

It sees the system's libraries, Python, this product, the files of its request and the accelerators, all read only; it
writes to its own directories. It has no network, no view of other processes, and an empty /tmp.
"""

import os
import site
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

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
_ACCELERATORS = ("nvidia*", "kfd", "dri", "accel", "dxg")
"""Names under /dev."""
_CODE = ("replaceme_core", "worker")
_IN_CACHE = ("models--", "datasets--")


def arguments(
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


def accelerators(dev: Path = Path("/dev")) -> list[Path]:
    """The devices of GPUs and the like."""
    return sorted(place for pattern in _ACCELERATORS for place in dev.glob(pattern))


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
