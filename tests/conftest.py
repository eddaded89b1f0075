"""Fixtures for all tests are in `tests/fixtures`.

A run puts its temporary files, and those of its child processes and libraries, into one directory. The directory is
removed at the end of the run, or by the next run if this one is killed.
"""

import gc
import os
import sys
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.fakes.brief_runner import BRIEF
from worker.workspace import locked_directory, remove_abandoned

gc.disable()  # until all tests are imported: a tenth of the time of that, twice in a run
os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # for such small matrices a second thread is slower, and two tests run at the same time

pytest_plugins = [
    "tests.fixtures.servers.database",
    "tests.fixtures.servers.hub",
    "tests.fixtures.servers.broker",
    "tests.fixtures.service.site",
    "tests.fixtures.service.wheel",
]


TEMPORARY_ROOT = "replaceme-tests"


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):  # a worker of xdist, whose parent has done it
        return
    system = tempfile.gettempdir()
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", system)  # `tmp_path` is where one looks for it after a failure
    root = Path(system) / TEMPORARY_ROOT
    remove_abandoned(root)
    held = ExitStack()
    held.callback(_remove_if_empty, root)
    # not deeper: servers put sockets there, whose paths are short
    place = held.enter_context(locked_directory(root, name="run"))
    os.environ["TMPDIR"] = tempfile.tempdir = str(place)
    config.add_cleanup(held.close)


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def _remove_if_empty(root: Path) -> None:
    with suppress(OSError):  # another run still uses it
        root.rmdir()


@pytest.fixture(scope="module", autouse=True)
def _short_collections() -> None:
    """Exclude objects of imports and earlier tests from the garbage collections between stages of the pipeline."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _as_at_the_start(request: pytest.FixtureRequest) -> None:
    """A run in this process sets the number of threads, and leaves objects that each later collection would visit."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    runs = "engine" in request.path.parts or "brief_reports" in request.fixturenames
    if runs:  # a test imports classes of models, and a run collects ten times
        gc.collect()
        gc.freeze()


@pytest.fixture
def brief_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports without what takes most of the time of a tiny model."""
    for module, name, value in BRIEF:
        if ".engine." not in module or "torch" in sys.modules:
            monkeypatch.setattr(f"{module}.{name}", value)
