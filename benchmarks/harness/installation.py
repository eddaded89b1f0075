"""What the service's benchmarks run on: real servers, and the product's processes around a runner without a model."""

import http.client
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.harness.fake_hub.access import READ_TOKEN, WRITE_TOKEN
from benchmarks.harness.servers import start_postgres, start_valkey
from benchmarks.harness.site import MODEL, Site
from replaceme_core.jobs.migrate import upgrade


class HubProcess:
    """The fake Hub in a process of its own, so that it takes no time from what is measured beside it."""

    def __init__(self, root: Path) -> None:
        model = root / MODEL
        model.mkdir(parents=True)
        (model / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 4, "hidden_size": 8}')
        (model / "model.safetensors").write_bytes(b"weights of the source")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.harness.fake_hub.server", "--root", str(root)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()

    def commits(self, repo_id: str) -> list[str]:
        """Messages of all commits but the Hub's own first one, newest first."""
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
    """PostgreSQL as it is configured by default and a server that speaks Redis' protocol; or SQLite and files."""
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
            extra={
                "REPLACEME_HUB": hub.url,
                "REPLACEME_HUB_READ_TOKEN": READ_TOKEN,
                "REPLACEME_HUB_WRITE_TOKEN": WRITE_TOKEN,
                "HF_HUB_DISABLE_XET": "1",
                "HF_HUB_DISABLE_TELEMETRY": "1",
                **settings,
            },
        )
        stack.callback(site.close)
        yield site, hub


def percentile(values: list[float], part: float) -> float:
    """The smallest of `values` that at least `part` of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(max(-int(-part * len(ordered) // 1) - 1, 0), len(ordered) - 1)]
