"""Fixtures shared by all tests live in `tests/fixtures`, one module for each kind of server.

All that a run leaves in the directory for temporary files, its own libraries and every process that a test kills among
them, is kept together and taken away: at its end, or by the next run where it was killed itself.
"""

import gc
import os
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from worker.workspace import collect_left_overs, held_directory

os.environ.setdefault("OMP_NUM_THREADS", "1")  # matrices this small are slower on two, and two tests run at a time

pytest_plugins = [
    "tests.fixtures.servers.database",
    "tests.fixtures.servers.hub",
    "tests.fixtures.servers.broker",
    "tests.fixtures.service.site",
    "tests.fixtures.service.wheel",
]


KEPT_TOGETHER = "replaceme-tests"


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):  # started by a process that has done it
        return
    system = tempfile.gettempdir()
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", system)  # `tmp_path` is where one looks for it after a failure
    root = Path(system) / KEPT_TOGETHER
    collect_left_overs(root)
    held = ExitStack()
    held.callback(_remove_if_empty, root)
    # not deeper: servers put sockets there, whose paths are short
    place = held.enter_context(held_directory(root, name="run"))
    os.environ["TMPDIR"] = tempfile.tempdir = str(place)
    config.add_cleanup(held.close)


def _remove_if_empty(root: Path) -> None:
    with suppress(OSError):  # another run is under way
        root.rmdir()


@pytest.fixture(scope="module", autouse=True)
def _short_collections() -> None:
    """The pipeline collects garbage between its stages: not through what imports and tests before have left, too."""
    gc.collect()
    gc.freeze()
