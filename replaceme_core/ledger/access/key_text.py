"""The text of an API key: `rmk_`, 256 random bits, and a checksum.

The prefix lets scanners of code and logs find a key that has leaked. The checksum lets the service refuse a mistyped
or invented key without a look into the database.
"""

import hashlib
import re
import secrets
import string
import zlib

PREFIX = "rmk_"
SHOWN_CHARACTERS = 8
"""So many characters of a key are stored and shown: the prefix and 24 of its 256 bits."""

_DIGITS = string.digits + string.ascii_uppercase + string.ascii_lowercase
_RANDOM_DIGITS = 43  # 62 ** 43 is more than 2 ** 256
_CHECK_DIGITS = 6  # 62 ** 6 is more than 2 ** 32
_KEY = re.compile(rf"{PREFIX}[0-9A-Za-z]{{{_RANDOM_DIGITS + _CHECK_DIGITS}}}")


def new_key() -> str:
    """A random key."""
    body = PREFIX + _in_base_62(secrets.randbits(256), _RANDOM_DIGITS)
    return body + _checksum(body)


def is_key(text: str) -> bool:
    """Whether `text` has the form and the checksum of a key."""
    return _KEY.fullmatch(text) is not None and text[-_CHECK_DIGITS:] == _checksum(text[:-_CHECK_DIGITS])


def hash_of(text: str) -> str:
    """What is stored of a key: 64 hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def _checksum(body: str) -> str:
    return _in_base_62(zlib.crc32(body.encode()), _CHECK_DIGITS)


def _in_base_62(number: int, digits: int) -> str:
    found = []
    for _ in range(digits):
        number, digit = divmod(number, len(_DIGITS))
        found.append(_DIGITS[digit])
    return "".join(reversed(found))
