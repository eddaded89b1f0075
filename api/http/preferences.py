"""What a client prefers: how long an answer may be held (`Prefer: wait=n`, RFC 7240), and JSON or a page (`Accept`)."""

import re

from fastapi import Request

LONGEST_WAIT_SECONDS = 60
_QUALITY = re.compile(r"[01](\.\d{0,3})?")
_WAIT = re.compile(r'(?:^|[,;])\s*wait\s*=\s*"?(\d{1,9})"?\s*(?=[,;]|$)', re.IGNORECASE)


def wait_seconds(request: Request) -> int:
    """Seconds, at most `LONGEST_WAIT_SECONDS`; 0 where the client prefers nothing that can be understood."""
    found = _WAIT.search(",".join(request.headers.getlist("prefer")))
    return min(int(found[1]), LONGEST_WAIT_SECONDS) if found else 0


def prefers_html(accept: str) -> bool:
    """Whether a value of `Accept` names HTML, and wants it more than JSON (RFC 9110, section 12.5.1).

    >>> browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
    >>> both = "text/html,application/json"
    >>> [prefers_html(text) for text in ("text/html", browser, "*/*", "", "text/html;q=0", both)]
    [True, True, False, False, False, False]
    """
    wanted: dict[str, float] = {}
    for part in accept.lower().split(","):
        kind, *parameters = (piece.strip() for piece in part.split(";"))
        quality = next((one.removeprefix("q=") for one in parameters if one.startswith("q=")), "1")
        wanted[kind] = float(quality) if _QUALITY.fullmatch(quality) else 1.0
    json = next((wanted[kind] for kind in ("application/json", "application/*", "*/*") if kind in wanted), 0.0)
    return wanted.get("text/html", 0.0) > json
