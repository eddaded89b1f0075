"""`Prefer: wait=n` (RFC 7240): how long an answer may be held."""

import re

from fastapi import Request

LONGEST_WAIT_SECONDS = 60
_WAIT = re.compile(r'(?:^|[,;])\s*wait\s*=\s*"?(\d{1,9})"?\s*(?=[,;]|$)', re.IGNORECASE)


def wait_seconds(request: Request) -> int:
    """Seconds, at most `LONGEST_WAIT_SECONDS`; 0 where the client prefers nothing that can be understood."""
    found = _WAIT.search(",".join(request.headers.getlist("prefer")))
    return min(int(found[1]), LONGEST_WAIT_SECONDS) if found else 0
