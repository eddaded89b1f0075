"""The fake Hub as a process of its own, as tests of whole services start it."""

import signal
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from replaceme_core.errors import HubUnreachable
from replaceme_core.hub.huggingface import HuggingFaceHub
from replaceme_core.hub.port import RepositoryKind


def test_a_hub_in_a_process_of_its_own(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for path in ("acme/tiny/config.json", "datasets/acme/text/train.txt"):
        (root / path).parent.mkdir(parents=True)
        (root / path).write_text("{}")
    command = [sys.executable, "-m", "benchmarks.harness.fake_hub.server", "--port", "0", "--root", str(root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            hub = HuggingFaceHub(url, read_token=None, write_token=None, cache=tmp_path / "cache")
            snapshot = hub.resolve("acme/tiny", kind=RepositoryKind.MODEL)
            assert hub.read_json(snapshot, "config.json") == {}
            assert hub.resolve("acme/text", kind=RepositoryKind.DATASET).has("train.txt")
            order = {"fault": "status", "path": "/api/models/", "value": 500}
            assert httpx2.post(f"{url}/-/faults", json=order).status_code == 200
            with pytest.raises(HubUnreachable):
                hub.resolve("acme/tiny", kind=RepositoryKind.MODEL)
            asked = httpx2.get(f"{url}/-/requests", params={"method": "GET", "path": "/api/models/"})
            assert asked.json() == {"count": 2}
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=20) == 0
