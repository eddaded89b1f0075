"""A whole installation for a benchmark: real servers, the fake Hub, and the product's processes.

This package, `benchmarks.harness`, is what the benchmarks and the tests share: PostgreSQL and Valkey servers from
wheels (`servers`), a Hub (`fake_hub`), the product's processes with a stub in place of the model work (`site`,
`runners`), and the check that a job's row follows from its events (`history`). It imports nothing from `tests`.
"""

import http.client
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.harness.fake_hub.access import READ_TOKEN, hub_environment
from benchmarks.harness.servers import start_postgres, start_valkey
from benchmarks.harness.site import MODEL, Site
from benchmarks.harness.stub_model import write_stub_model
from replaceme_core.ledger.migrate import upgrade


class HubProcess:
    """The fake Hub in a separate process, so that it does not share an interpreter with what is measured."""

    def __init__(self, root: Path) -> None:
        write_stub_model(root / MODEL)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.harness.fake_hub.server", "--root", str(root)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()

    def commits(self, repo_id: str) -> list[str]:
        """Messages of all commits except the one that created the repository, newest first."""
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=30)
        path = f"/api/models/{repo_id}/commits/main"
        connection.request("GET", path, headers={"Authorization": f"Bearer {READ_TOKEN}"})
        response = connection.getresponse()
        body = json.loads(response.read())
        connection.close()
        if response.status != 200:
            return []
        return [str(commit["message"]).strip() for commit in body][:-1]

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()


@contextmanager
def installation(*, embedded: bool, settings: Mapping[str, str]) -> Iterator[tuple[Site, HubProcess]]:
    """PostgreSQL with its default settings and Valkey; if `embedded`, SQLite and the filesystem broker."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="replaceme-bench-")))
        hub = HubProcess(folder / "hub-store")
        stack.callback(hub.close)
        broker_url = None
        if embedded:
            database_url = f"sqlite:///{folder / 'ledger.sqlite3'}"
        else:
            database_url = stack.enter_context(stack.enter_context(start_postgres(durable=True)).server.database())
            broker_url = stack.enter_context(start_valkey()).url
        upgrade(database_url)
        site = Site(
            data=folder / "data",
            database_url=database_url,
            broker_url=broker_url,
            extra={**hub_environment(hub.url), **settings},
        )
        stack.callback(site.close)
        yield site, hub
