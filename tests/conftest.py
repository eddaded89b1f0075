"""Fixtures shared by all tests live in `tests/fixtures`, one module for each kind of server."""

pytest_plugins = [
    "tests.fixtures.database",
    "tests.fixtures.hub",
    "tests.fixtures.broker",
    "tests.fixtures.processes",
    "tests.fixtures.wheel",
]
