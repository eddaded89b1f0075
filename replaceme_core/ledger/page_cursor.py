"""Opaque cursors of lists that show the newest first: the number of the last row of a page."""

import base64
import binascii
import re

from replaceme_core.errors import InvalidInput

_CURSOR = re.compile(r"before:([1-9]\d{0,17})")


def to_cursor(number: int) -> str:
    return base64.urlsafe_b64encode(f"before:{number}".encode()).decode().rstrip("=")


def from_cursor(cursor: str) -> int:
    """The number in a cursor. Raises `InvalidInput` (field `cursor`)."""
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        text = ""
    match = _CURSOR.fullmatch(text)
    if match is None:
        raise InvalidInput(
            "the cursor must be the next_cursor of an earlier page, unchanged", field="cursor", value=cursor
        )
    return int(match[1])
