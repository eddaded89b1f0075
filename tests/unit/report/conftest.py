"""One real run for all tests of this folder."""

from pathlib import Path

import pytest

from tests.fixtures.reports.real_run import finished_run


@pytest.fixture(scope="session")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a result."""
    return finished_run(tmp_path_factory.mktemp("run"))[1]
