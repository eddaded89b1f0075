"""Fixtures shared by all tests live in `tests/fixtures`, one module for each kind of server."""

import gc

pytest_plugins = [
    "tests.fixtures.database",
    "tests.fixtures.hub",
    "tests.fixtures.broker",
    "tests.fixtures.processes",
    "tests.fixtures.wheel",
]


def pytest_collection_finish() -> None:
    """The pipeline collects garbage between stages: not through what the imports left, many times in each test."""
    gc.collect()
    gc.freeze()
