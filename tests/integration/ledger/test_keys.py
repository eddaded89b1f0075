"""What many requests at the same moment do to the rows of keys and owners."""

import base64
from functools import partial

import pytest

from replaceme_core.errors import InvalidInput
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.keys import Owners
from replaceme_core.secrets_box import SecretsBox
from tests.fixtures.jobs.ledger import at_once


def test_several_credentials_at_once_stay_within_the_limit(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("replaceme_core.ledger.keys.MOST_CREDENTIALS", 2)
    box = SecretsBox(base64.b64encode(bytes(32)).decode())

    def put(name: str) -> bool:
        try:
            with database.session() as session:
                Owners(session).put_credential("someone", name, "hf_token", box=box)
        except InvalidInput:
            return False
        return True

    assert sum(at_once(*[partial(put, f"name{number}") for number in range(8)])) == 2
