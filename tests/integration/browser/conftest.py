"""The tests of this folder are collected where a Chromium is installed, and nowhere else.

CI installs it (`.ci/run`). `REPLACEME_TEST_CHROMIUM` names one that is not on the path.
"""

import json
from collections.abc import Iterator

import pytest
import torch
from cryptography.fernet import Fernet
from playwright.sync_api import Browser

from benchmarks.harness.site import Site
from replaceme_core.ledger.keys import Keys, NewKey, Scope
from replaceme_core.runner.process import RUNNER_COMMAND
from tests.fixtures.browser.chromium import CHROMIUM, chromium
from tests.fixtures.models.tiny import save_tiny

collect_ignore_glob = [] if CHROMIUM else ["test_*.py"]
REPOSITORY = "acme/real"
OWNER = "alice"


@pytest.fixture(scope="module")  # its event loop runs while it is open, and then no other may be started
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture
def keyed_site(server_site: Site) -> Site:
    """The whole product on real servers with a tiny model, the real runner, and keys required."""
    server_site.extra |= {
        "REPLACEME_RUNNER_COMMAND": json.dumps(RUNNER_COMMAND),
        "REPLACEME_REQUIRE_KEY": "true",
        "REPLACEME_ENCRYPTION_KEY": Fernet.generate_key().decode(),
    }
    save_tiny(server_site.hub_directory / REPOSITORY, dtype=torch.bfloat16)
    return server_site


@pytest.fixture
def key(keyed_site: Site) -> str:
    """A key of the owner `OWNER` that may do everything."""
    scopes = frozenset(Scope)
    with keyed_site.database.session() as session:
        return Keys(session).create(NewKey(owner=OWNER, name="browser", scopes=scopes)).key
