"""What a client may not see of a runner's log: secrets and the places of files on the worker.

A runner gets no secret, and its log goes to the owner of the job only. But the log is text of libraries about a model
that somebody else made, so nothing in it is taken on trust.
"""

import re
from collections.abc import Iterator
from urllib.parse import unquote, urlsplit

from replaceme_core.runner.failure import without_paths
from replaceme_core.settings import Settings

HIDDEN = "[hidden]"
_SHORTEST_SECRET = 6  # a shorter one would hide common words
_SECRETS = re.compile(
    r"""
    \bhf_[A-Za-z0-9]{8,}                                  # tokens of the Hub
    | \b(?:rm|whsec|sk|ghp|gho|github_pat)_[A-Za-z0-9_+/=-]{16,}  # API keys and secrets of webhooks
    | \beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*  # JSON web tokens
    | (?<=[?&])[^=\s&]*(?:sig|signature|token|credential|key)[^=\s&]*=[^\s&]+  # signed addresses
    | (?<=//)[^/\s@]+(?=@)                                # names and passwords in addresses
    """,
    re.VERBOSE | re.IGNORECASE,
)
_NAMED = re.compile(
    r"(?i)\b(authorization|bearer|token|password|passwd|secret|api[_-]?key)\b(\s*[:=]\s*|\s+)(bearer\s+)?\S+"
)
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")


class Redaction:
    """Called with a line, it returns what a client may see of it; "" if nothing is left."""

    def __init__(self, settings: Settings) -> None:
        self._known = tuple(sorted(set(_secrets_of(settings)), key=len, reverse=True))

    def __call__(self, line: str) -> str:
        """
        >>> Redaction(Settings(_env_file=None))("reading /srv/models/config.json with token=abc123")
        'reading config.json with token=[hidden]'
        """
        text = line.rsplit("\r", 1)[-1]  # the last state of a progress bar
        text = _CONTROL.sub("", text)
        for secret in self._known:
            text = text.replace(secret, HIDDEN)
        text = _SECRETS.sub(HIDDEN, text)
        text = _NAMED.sub(lambda found: f"{found[1]}{found[2]}{HIDDEN}", text)
        return without_paths(text).rstrip()


def _secrets_of(settings: Settings) -> Iterator[str]:
    """The secrets that this process knows."""
    for token in (settings.hub_read_token, settings.hub_write_token):
        if token is not None and len(token.get_secret_value()) >= _SHORTEST_SECRET:
            yield token.get_secret_value()
    for url in (settings.database_url, settings.broker_url):
        password = urlsplit(url or "").password
        if password is not None and len(password) >= _SHORTEST_SECRET:
            yield from (password, unquote(password))
