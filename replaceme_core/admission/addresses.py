"""How an operator writes hosts, networks, origins and paths in settings, and what is said of those that are none."""

import ipaddress
import re

_HOST = re.compile(r"\*|[A-Za-z0-9_.-]+|\[?[0-9A-Fa-f]*:[0-9A-Fa-f:.]+\]?")
_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)+")
_ORIGIN = re.compile(r"https?://[a-z0-9.-]+(:\d{1,5})?|https?://\[[0-9a-f:.]+\](:\d{1,5})?")


def check_hosts(names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Names or addresses of hosts; one star is any. Raises `ValueError`."""
    for name in names or ():
        if not _HOST.fullmatch(name):
            raise ValueError(f"expected names or addresses without scheme and port, separated by commas, got {name!r}")
    return names


def check_networks(names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Networks such as 10.0.0.0/8. Raises `ValueError`."""
    for name in names or ():
        try:
            ipaddress.ip_network(name)
        except ValueError:
            raise ValueError(f"expected networks such as 10.0.0.0/8, separated by commas, got {name!r}") from None
    return names


def check_proxies(names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Networks, or a star for any address. Raises `ValueError`."""
    check_networks(tuple(name for name in names or () if name != "*"))
    return names


def check_root_path(path: str) -> str:
    """A path without a slash at its end, or nothing. Raises `ValueError`."""
    if path and not _PATH.fullmatch(path):
        raise ValueError(f"expected a path such as /replaceme, without a slash at its end, got {path!r}")
    return path


def check_origins(names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Origins of the web, such as https://example.org. Raises `ValueError`."""
    for name in names or ():
        if not _ORIGIN.fullmatch(name):
            raise ValueError(f"expected origins such as https://example.org, separated by commas, got {name!r}")
    return names
