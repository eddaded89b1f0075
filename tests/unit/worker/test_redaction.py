"""What a client may see of a runner's log."""

import pytest
from pydantic import SecretStr

from replaceme_core.settings import Settings
from worker.progress_writer import HIDDEN, Redaction

SETTINGS = Settings(
    _env_file=None,
    hub_write_token=SecretStr("a-token-without-a-prefix"),
    database_url="postgresql+psycopg://me:p%40ssword@db.internal/ledger",
)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("loading weights: 100%", "loading weights: 100%"),
        ("tokens 32768 of 65536", "tokens 32768 of 65536"),
        (" 10%|#   |\r 90%|####|\r100%|####|", "100%|####|"),
        ("\x1b[31mwarning\x1b[0m: slow", "warning: slow"),
        ("read /srv/data/models/config.json", "read config.json"),
        ("hf_abcdefghijklmnop is no token", f"{HIDDEN} is no token"),
        ("sent a-token-without-a-prefix", f"sent {HIDDEN}"),
        ("cannot reach p@ssword or p%40ssword", f"cannot reach {HIDDEN} or {HIDDEN}"),
        ("GET https://me:secret1@host/x", f"GET https://{HIDDEN}@host/x"),
        ("GET https://s3/x?X-Amz-Signature=abcdef&part=1", f"GET https://s3/x?{HIDDEN}&part=1"),
        ("Authorization: Bearer abc.def", f"Authorization: {HIDDEN}"),
        ("api_key=abc", f"api_key={HIDDEN}"),
        ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", HIDDEN),
        ("", ""),
    ],
)
def test_what_is_left_of_a_line(line: str, shown: str) -> None:
    assert Redaction(SETTINGS)(line) == shown
