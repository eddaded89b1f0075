"""The API key that a client sends: the one it is given, that of the environment, or the one of a service made here."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

KEY_VARIABLE = "REPLACEME_API_KEY"
KEY_FILE = "api-key"
_DATA_VARIABLE, _DEFAULT_DATA = "REPLACEME_DATA", "data"
_HEADER_TEXT = re.compile("[!-~]+")  # visible ASCII


@dataclass(frozen=True, kw_only=True)
class FoundKey:
    """A key. `is_guess`: nobody has named it, and the service at hand may be another than the one that made it."""

    text: str
    is_guess: bool = False


def find_key(given: str | None, *, is_local: bool, environ: Mapping[str, str] = os.environ) -> FoundKey | None:
    """The key for a service; `is_local`: one on this machine, to which alone the key of `DATA/api-key` is sent.

    Raises `ValueError` for a key that cannot be in a header; the message does not contain it.
    """
    named = given or environ.get(KEY_VARIABLE)
    if named:
        if _HEADER_TEXT.fullmatch(named.strip()) is None:
            raise ValueError("the API key has characters that no key has")
        return FoundKey(text=named.strip())
    if not is_local:
        return None
    try:
        text = (Path(environ.get(_DATA_VARIABLE) or _DEFAULT_DATA).expanduser() / KEY_FILE).read_text("ascii").strip()
    except (OSError, ValueError):  # there is none, or it belongs to somebody else
        return None
    return FoundKey(text=text, is_guess=True) if _HEADER_TEXT.fullmatch(text) else None
