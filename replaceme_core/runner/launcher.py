"""`python -I -S launcher.py OPTIONS -- COMMAND`: limits the process that it is, then becomes COMMAND.

A script with the standard library only, which starts in a few milliseconds. The limits hold before any code of COMMAND
runs, and for all that it starts.
"""

import argparse
import ctypes
import os
import resource
import signal
import sys
from typing import NoReturn

_CLONE_NEWNET = 0x40000000
_PR_SET_NO_NEW_PRIVS = 38


def launch(arguments: list[str]) -> NoReturn:
    """Apply the limits and execute the command. Raises `OSError`."""
    end = arguments.index("--")
    parser = argparse.ArgumentParser()
    parser.add_argument("--group", help="a file with the members of a control group, which this process joins")
    parser.add_argument("--data", type=int, help="bytes of private memory")
    parser.add_argument("--keep-at-sigterm", action="store_true", help="ignore it; the command may still handle it")
    parser.add_argument("--no-network", action="store_true", help="a network of its own, without any device")
    parser.add_argument("--user", help="UID:GID")
    options, command = parser.parse_args(arguments[:end]), arguments[end + 1 :]
    if options.group is not None:
        with open(options.group, "w", encoding="ascii") as members:  # noqa: PTH123  # pathlib is not needed otherwise
            members.write("0")  # this process
    if options.data is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (options.data, options.data))
    if options.keep_at_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if options.no_network:
        _call("unshare", _CLONE_NEWNET)
    if options.user is not None:
        user, group = map(int, options.user.split(":"))
        os.setgroups([])
        os.setresgid(group, group, group)
        os.setresuid(user, user, user)
        _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    os.execvp(command[0], command)


def _call(name: str, *values: int) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*values) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


if __name__ == "__main__":
    try:
        launch(sys.argv[1:])
    except OSError as error:
        sys.exit(f"the runner could not be started: {error}")
