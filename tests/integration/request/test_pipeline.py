"""Hostile repositories through all steps of a worker: none runs code, takes long, or is an error of the service."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.harness.checkout import ROOT
from tests.fixtures.hostile.repositories import ALL, build_hub, canaries

SECONDS, MEGABYTES = 5, 500
"""Of processor time, and of memory beside the libraries', for one repository."""
SLACK_SECONDS = 900
"""Of the clock for all of them, on a machine that does other things too: alone it takes half a minute."""
pytestmark = pytest.mark.timeout(SLACK_SECONDS)


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    build_hub(tmp_path / "hub")
    return tmp_path / "hub"


def pruned(hub: Path) -> dict[str, dict[str, object]]:
    """By name: code, message, seconds and megabytes of each."""
    command = [sys.executable, "-m", "tests.fixtures.hostile.pipeline_process", str(hub), str(hub.parent / "out")]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"},
        cwd=hub.parent,
        capture_output=True,
        text=True,
        timeout=SLACK_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {row["name"]: row for row in rows}


def test_each_is_refused_in_its_own_words_and_nothing_is_left(hub: Path, subtests: pytest.Subtests) -> None:
    outcomes = pruned(hub)
    assert outcomes.keys() == ALL.keys()
    for name, found in outcomes.items():
        case, message = ALL[name].case, str(found["message"])
        with subtests.test(name):
            assert (found["code"], case.says in message) == (case.code, True), found
            assert len(message) <= 1000
            assert str(hub.parent) not in message
            assert float(str(found["seconds"])) < SECONDS, found
            assert float(str(found["megabytes"])) < MEGABYTES, found
    assert canaries(hub.parent) == []
    assert sorted(path.name for path in hub.parent.iterdir()) in (["hub"], ["hub", "out"])
    assert not [path for path in (hub.parent / "out").rglob("*") if path.is_file()]
