"""Fixtures shared by all tests live in `tests/fixtures`, one module for each kind of server."""

import gc
import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # matrices this small are slower on two, and two tests run at a time

pytest_plugins = [
    "tests.fixtures.database",
    "tests.fixtures.hub",
    "tests.fixtures.broker",
    "tests.fixtures.processes",
    "tests.fixtures.wheel",
]


@pytest.fixture(scope="module", autouse=True)
def _short_collections() -> None:
    """The pipeline collects garbage between its stages: not through what imports and tests before have left, too."""
    gc.collect()
    gc.freeze()
