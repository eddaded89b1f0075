"""The process of the API: uvicorn with limits of connections.

    python -m api.launch.http_server --host 127.0.0.1 --port 8000

Exit status 2: the settings forbid this address, or are not valid, or the database does not say whether there are keys.
"""

import argparse
import resource
import sys

import uvicorn

from api.launch.connections import KEEP_ALIVE_SECONDS, limited_to
from api.launch.startup import check_exposure
from replaceme_core import telemetry
from replaceme_core.errors import ReplaceMeError
from replaceme_core.settings import Settings

DRAIN_SECONDS = 5
RESERVED_DESCRIPTORS = 256  # for the backlog, which is accepted at once, and for database, broker, Hub and log
_BACKLOG = 128
_MOST_DESCRIPTORS = 65_536
_FEWEST_CONNECTIONS = 16


def run(host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT. Raises as `check_exposure` does."""
    settings = Settings()
    check_exposure(host, settings)
    telemetry.configure_logs(settings.log_format, service="api")
    uvicorn.run(
        "api.main:app",
        host=host,
        port=port,
        http=limited_to(
            most_connections(settings.max_connections, raise_descriptor_limit()), proxies=settings.trusted_proxies or ()
        ),
        ws="none",
        backlog=_BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        access_log=False,
        log_config=None,  # its loggers write as all others do
        proxy_headers=False,  # REPLACEME_TRUSTED_PROXIES decides
    )


def raise_descriptor_limit() -> int:
    """Raise this process's limit of open files as far as it may; returns what it is now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (ValueError, OSError):  # macOS has a further limit
            return soft
        return wanted
    return min(soft, _MOST_DESCRIPTORS) if soft != resource.RLIM_INFINITY else _MOST_DESCRIPTORS


def most_connections(wanted: int, descriptors: int) -> int:
    """How many connections may be open, so that files and other sockets have descriptors too."""
    return max(min(wanted, descriptors - RESERVED_DESCRIPTORS), _FEWEST_CONNECTIONS)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m api.launch.http_server", description="Run the API.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on")
    arguments = parser.parse_args()
    try:
        run(arguments.host, arguments.port)
    except ReplaceMeError as error:
        sys.stderr.write(f"error: {error.message}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
