"""The style sheet and the scripts, read once. Their addresses name their content, so browsers may keep them."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).parent / "static"
_MEDIA_TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
_VERSION_DIGITS = 12


@dataclass(frozen=True, kw_only=True)
class StaticFile:
    """A file, with the version that its address has."""

    content: bytes
    media_type: str
    version: str


@cache
def static_files() -> Mapping[str, StaticFile]:
    """All files by name; licences are beside the scripts and are not served."""
    found = {}
    for path in sorted(_FOLDER.rglob("*")):
        if path.suffix in _MEDIA_TYPES:
            content = path.read_bytes()
            version = hashlib.sha256(content).hexdigest()[:_VERSION_DIGITS]
            found[path.name] = StaticFile(content=content, media_type=_MEDIA_TYPES[path.suffix], version=version)
    return found


def address_of(name: str) -> str:
    """The address of a file, below the root of the service. Raises `KeyError` for a name that does not exist."""
    return f"/ui/static/{static_files()[name].version}/{name}"
